# What `cmake --install` puts below a prefix, which may be moved afterwards:
#   lib/        the library, its Gloo module, the CMake package (meshstage::meshstage, meshstage::torch), meshstage.pc
#   include/    <meshstage/...>
#   bin/        the command and the example trainer
#   share/      the manual page, completions, documents and examples
# The target meshstage_installed builds all of it, and no test.
include(CMakePackageConfigHelpers)
add_custom_target(meshstage_installed)
foreach(target IN ITEMS meshstage meshstage_gloo meshstage_cuda meshstage_nccl meshstage_command meshstage-trainer)
  if(TARGET ${target})
    add_dependencies(meshstage_installed ${target})
  endif()
endforeach()
set(package_folder "${CMAKE_INSTALL_LIBDIR}/cmake/meshstage")
install(TARGETS meshstage EXPORT meshstage-targets
  FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILE_SET foreign_headers DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT meshstage-targets NAMESPACE meshstage:: DESTINATION ${package_folder})
get_target_property(MESHSTAGE_LIBRARY_TYPE meshstage TYPE)
get_property(MESHSTAGE_HAS_REDIS GLOBAL PROPERTY MESHSTAGE_HAS_REDIS)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/meshstage-config.cmake.in
  ${PROJECT_BINARY_DIR}/meshstage-config.cmake INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/meshstage-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/meshstage-config.cmake ${PROJECT_BINARY_DIR}/meshstage-config-version.cmake
  ${CMAKE_CURRENT_LIST_DIR}/meshstage-torch.cmake DESTINATION ${package_folder})

# pkg-config: its prefix is told from where the file lies, so it moves with the tree. Of a static library a program
# links what that needs, too, and carries the module's folder as a run path.
cmake_path(ABSOLUTE_PATH CMAKE_INSTALL_LIBDIR BASE_DIRECTORY "/prefix" OUTPUT_VARIABLE libdir)
cmake_path(ABSOLUTE_PATH CMAKE_INSTALL_INCLUDEDIR BASE_DIRECTORY "/prefix" OUTPUT_VARIABLE includedir)
cmake_path(RELATIVE_PATH libdir BASE_DIRECTORY "${libdir}/pkgconfig" OUTPUT_VARIABLE MESHSTAGE_PC_LIBDIR)
cmake_path(RELATIVE_PATH includedir BASE_DIRECTORY "${libdir}/pkgconfig" OUTPUT_VARIABLE MESHSTAGE_PC_INCLUDEDIR)
set(MESHSTAGE_PC_REQUIRES "")
set(MESHSTAGE_PC_LIBS "-lmeshstage")
if(MESHSTAGE_LIBRARY_TYPE STREQUAL "STATIC_LIBRARY")
  set(MESHSTAGE_PC_REQUIRES "libxxhash")
  if(MESHSTAGE_HAS_REDIS)
    string(APPEND MESHSTAGE_PC_REQUIRES " hiredis")
  endif()
  string(APPEND MESHSTAGE_PC_LIBS " -pthread -ldl -Wl,-rpath,\${libdir}/meshstage")
endif()
configure_file(${CMAKE_CURRENT_LIST_DIR}/meshstage.pc.in ${PROJECT_BINARY_DIR}/meshstage.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/meshstage.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

# Documents keep their folders, so that links between them hold.
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
file(GLOB documents RELATIVE "${PROJECT_SOURCE_DIR}" "${PROJECT_SOURCE_DIR}/*.md")
foreach(top IN ITEMS core mesh dtensor sharded tools)
  file(GLOB_RECURSE found RELATIVE "${PROJECT_SOURCE_DIR}" "${PROJECT_SOURCE_DIR}/${top}/*.md")
  list(APPEND documents ${found})
endforeach()
foreach(document IN LISTS documents)
  cmake_path(GET document PARENT_PATH folder)
  install(FILES "${PROJECT_SOURCE_DIR}/${document}" DESTINATION "${CMAKE_INSTALL_DOCDIR}/${folder}")
endforeach()
if(EXISTS "${PROJECT_SOURCE_DIR}/tools/examples")
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/tools/examples/" DESTINATION "${CMAKE_INSTALL_DOCDIR}/tools/examples"
    FILES_MATCHING PATTERN "*.cpp" PATTERN "*.hpp" PATTERN "*.py")
  install(FILES "${PROJECT_SOURCE_DIR}/tools/examples/consumer/CMakeLists.txt"
    DESTINATION "${CMAKE_INSTALL_DOCDIR}/tools/examples/consumer")
  install(PROGRAMS "${PROJECT_SOURCE_DIR}/tools/examples/random_kills"
    DESTINATION "${CMAKE_INSTALL_DOCDIR}/tools/examples")
  install(FILES "${CMAKE_CURRENT_LIST_DIR}/examples.cmake" RENAME CMakeLists.txt
    DESTINATION "${CMAKE_INSTALL_DOCDIR}/tools/examples")
endif()
