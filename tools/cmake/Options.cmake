# Backend options, target defaults, the summary.

# A backend that drags in a library: AUTO looks for it, ON insists, OFF leaves a stub.
function(meshstage_backend_option name description)
  set(${name} AUTO CACHE STRING "${description}: AUTO, ON or OFF")
  set_property(CACHE ${name} PROPERTY STRINGS AUTO ON OFF)
  if(NOT "${${name}}" MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "${name}=${${name}}: say AUTO, ON or OFF")
  endif()
endfunction()

# Compiler settings of every target of this project; nothing global.
function(meshstage_configure_target target)
  set_target_properties(${target} PROPERTIES CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS OFF
    CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON POSITION_INDEPENDENT_CODE ON)
  if(PROJECT_IS_TOP_LEVEL)
    target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wconversion
      -Wnon-virtual-dtor -Woverloaded-virtual -Wno-sign-conversion)
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    # std::stable_sort of libstdc++ 12 uses std::get_temporary_buffer, which clang calls deprecated.
    target_compile_options(${target} PRIVATE -Wno-deprecated-declarations)
    # What threads share is annotated (core/async/mutex.hpp): access without its mutex is an error.
    target_compile_options(${target} PRIVATE -Wthread-safety -Werror=thread-safety)
  endif()
  if(MESHSTAGE_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
endfunction()

# Installs a program in bin/; with a shared libmeshstage it finds that beside itself, wherever the tree is moved.
function(meshstage_install_program target)
  cmake_path(ABSOLUTE_PATH CMAKE_INSTALL_BINDIR BASE_DIRECTORY "/prefix" OUTPUT_VARIABLE bin)
  cmake_path(ABSOLUTE_PATH CMAKE_INSTALL_LIBDIR BASE_DIRECTORY "/prefix" OUTPUT_VARIABLE lib)
  cmake_path(RELATIVE_PATH lib BASE_DIRECTORY "${bin}" OUTPUT_VARIABLE relative)
  set_target_properties(${target} PROPERTIES INSTALL_RPATH "$ORIGIN/${relative}")
  install(TARGETS ${target} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()

# Says what was found; `meshstage info` repeats it.
set_property(GLOBAL PROPERTY MESHSTAGE_SUMMARY "")
function(meshstage_summary line)
  set_property(GLOBAL APPEND PROPERTY MESHSTAGE_SUMMARY "${line}")
endfunction()
function(meshstage_print_summary)
  get_property(lines GLOBAL PROPERTY MESHSTAGE_SUMMARY)
  message(STATUS "meshstage ${PROJECT_VERSION}:")
  foreach(line IN LISTS lines)
    message(STATUS "  ${line}")
  endforeach()
endfunction()
