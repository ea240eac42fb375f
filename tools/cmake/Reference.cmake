# The target api_reference: HTML from the /// comments of the installed headers, where a warning is an error.
find_program(MESHSTAGE_DOXYGEN doxygen)
mark_as_advanced(MESHSTAGE_DOXYGEN)
if(MESHSTAGE_DOXYGEN)
  get_property(MESHSTAGE_REFERENCE_INPUT TARGET meshstage PROPERTY HEADER_SET)
  get_property(foreign TARGET meshstage PROPERTY HEADER_SET_foreign_headers)
  list(APPEND MESHSTAGE_REFERENCE_INPUT ${foreign})
  list(FILTER MESHSTAGE_REFERENCE_INPUT INCLUDE REGEX "\\.hpp$")
  list(TRANSFORM MESHSTAGE_REFERENCE_INPUT REPLACE "(.+)" "\"\\1\"")
  list(JOIN MESHSTAGE_REFERENCE_INPUT " " MESHSTAGE_REFERENCE_INPUT)
  configure_file("${CMAKE_CURRENT_LIST_DIR}/Doxyfile.in" "${PROJECT_BINARY_DIR}/Doxyfile" @ONLY)
  add_custom_target(api_reference COMMAND "${MESHSTAGE_DOXYGEN}" "${PROJECT_BINARY_DIR}/Doxyfile"
    COMMENT "API reference: ${PROJECT_BINARY_DIR}/reference/html/index.html" VERBATIM)
endif()
