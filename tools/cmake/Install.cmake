# The installed package: find_package(meshstage) gives meshstage::meshstage.
include(CMakePackageConfigHelpers)
install(TARGETS meshstage EXPORT meshstage-targets
  FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT meshstage-targets NAMESPACE meshstage:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/meshstage)
get_target_property(MESHSTAGE_LIBRARY_TYPE meshstage TYPE)
get_property(MESHSTAGE_HAS_REDIS GLOBAL PROPERTY MESHSTAGE_HAS_REDIS)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/meshstage-config.cmake.in
  ${PROJECT_BINARY_DIR}/meshstage-config.cmake INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/meshstage)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/meshstage-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/meshstage-config.cmake ${PROJECT_BINARY_DIR}/meshstage-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/meshstage)
