# meshstage_find_torch(): the target meshstage::torch, for programs that include <meshstage/core/interop/torch.hpp>.
# LibTorch is found by its files below CMAKE_PREFIX_PATH: an unpacked libtorch, the folder of PyPI's torch, or what
# torch.utils.cmake_prefix_path says. Its own CMake package is not used: that of a build with CUDA insists on a CUDA
# toolkit, which nothing here needs.
# Sets meshstage_torch_FOUND, and meshstage_torch_WHY where it is false.
function(meshstage_find_torch)
  set(hints "$ENV{LIBTORCH}")
  foreach(prefix IN LISTS CMAKE_PREFIX_PATH)
    list(APPEND hints "${prefix}" "${prefix}/../..")  # <torch>/share/cmake
  endforeach()
  set(why "")
  find_path(MESHSTAGE_TORCH_INCLUDE torch/csrc/api/include/torch/torch.h HINTS ${hints} PATH_SUFFIXES include)
  set(libraries "")
  foreach(part IN ITEMS torch_cpu c10)
    find_library(MESHSTAGE_TORCH_${part} ${part} HINTS ${hints} PATH_SUFFIXES lib)
    list(APPEND libraries "${MESHSTAGE_TORCH_${part}}")
    mark_as_advanced(MESHSTAGE_TORCH_${part})
  endforeach()
  mark_as_advanced(MESHSTAGE_TORCH_INCLUDE)
  if(NOT MESHSTAGE_TORCH_INCLUDE OR NOT MESHSTAGE_TORCH_torch_cpu OR NOT MESHSTAGE_TORCH_c10)
    set(why "no LibTorch below CMAKE_PREFIX_PATH; for PyPI's say -DCMAKE_PREFIX_PATH=<site-packages>/torch")
  else()
    cmake_path(GET MESHSTAGE_TORCH_INCLUDE PARENT_PATH root)
    set(config "${root}/share/cmake/Torch/TorchConfig.cmake")
    if(EXISTS "${config}")
      file(STRINGS "${config}" old_abi REGEX "_GLIBCXX_USE_CXX11_ABI=0")
      if(old_abi)
        set(why "the LibTorch in ${root} is built for the old C++ ABI of libstdc++; take 2.7 or newer, or a cxx11-abi one")
      endif()
    endif()
  endif()
  if(why)
    set(meshstage_torch_FOUND FALSE PARENT_SCOPE)
    set(meshstage_torch_WHY "${why}" PARENT_SCOPE)
    return()
  endif()
  # The CUDA parts register themselves when they are loaded: nothing calls them by name.
  foreach(part IN ITEMS torch_cuda c10_cuda)
    find_library(MESHSTAGE_TORCH_${part} ${part} HINTS ${hints} PATH_SUFFIXES lib)
    mark_as_advanced(MESHSTAGE_TORCH_${part})
    if(MESHSTAGE_TORCH_${part})
      list(APPEND libraries "${MESHSTAGE_TORCH_${part}}")
    endif()
  endforeach()
  if(NOT TARGET meshstage::torch)
    add_library(meshstage::torch INTERFACE IMPORTED GLOBAL)
    set_target_properties(meshstage::torch PROPERTIES
      INTERFACE_INCLUDE_DIRECTORIES  # of an imported target: system headers
        "${MESHSTAGE_TORCH_INCLUDE};${MESHSTAGE_TORCH_INCLUDE}/torch/csrc/api/include"
      INTERFACE_LINK_LIBRARIES "meshstage::meshstage;${libraries}"
      INTERFACE_LINK_OPTIONS "LINKER:--no-as-needed")
  endif()
  set(meshstage_torch_FOUND TRUE PARENT_SCOPE)
endfunction()
