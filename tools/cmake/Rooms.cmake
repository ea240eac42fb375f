# Rooms: a folder, its files, and the arrows to the rooms that it needs.
#
#   meshstage_room(
#     NEEDS error async           rooms whose headers this one includes; they were added before it, so arrows go one way
#     HEADERS a.hpp               public: installed, and each compiles alone
#     FOREIGN_HEADERS t.hpp       public, for users of a library that we do not need: installed, not compiled here
#     INTERNAL_HEADERS b.hpp      for the rooms above, tools and tests; not installed
#     PRIVATE_HEADERS c_impl.hpp  for this room and the tests that mirror it
#     SOURCES a.cpp
#     LIBRARIES Some::Library     outside libraries that its sources link
#     HEADER_LIBRARIES Some::Headers  outside headers that its sources include; nothing to link or to find by a consumer
#     PART_OF comm                this folder is a driver's: its files join the room of that name
#     INTERNAL)                   all headers of the room are internal
#
# A room becomes an object library, meshstage_room_NAME, and all of them together libmeshstage. What a room may
# include is checked by tests/structure, what it may call by the target room_links.

set_property(GLOBAL PROPERTY MESHSTAGE_ROOMS "")
set_property(GLOBAL PROPERTY MESHSTAGE_ROOM_TABLE "")

function(meshstage_room)
  cmake_parse_arguments(ROOM "INTERNAL" "PART_OF"
    "NEEDS;HEADERS;FOREIGN_HEADERS;INTERNAL_HEADERS;PRIVATE_HEADERS;SOURCES;LIBRARIES;HEADER_LIBRARIES" ${ARGN})
  if(ROOM_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "meshstage_room: what is ${ROOM_UNPARSED_ARGUMENTS}?")
  endif()
  cmake_path(RELATIVE_PATH CMAKE_CURRENT_SOURCE_DIR BASE_DIRECTORY "${PROJECT_SOURCE_DIR}" OUTPUT_VARIABLE folder)
  get_property(rooms GLOBAL PROPERTY MESHSTAGE_ROOMS)
  if(ROOM_PART_OF)
    set(name ${ROOM_PART_OF})
  else()
    cmake_path(GET folder FILENAME name)
    foreach(need IN LISTS ROOM_NEEDS)
      if(NOT need IN_LIST rooms)
        message(FATAL_ERROR "Room ${name} needs ${need}, which is no room that was added before it: arrows go one way.")
      endif()
    endforeach()
    set_property(GLOBAL APPEND PROPERTY MESHSTAGE_ROOMS ${name})
    set_property(GLOBAL PROPERTY MESHSTAGE_ROOM_${name}_NEEDS ${ROOM_NEEDS})
    string(JOIN " " needs ${ROOM_NEEDS})
    set_property(GLOBAL APPEND PROPERTY MESHSTAGE_ROOM_TABLE "room ${folder} ${needs}")
  endif()

  if(ROOM_SOURCES)
    if(NOT TARGET meshstage_room_${name})
      add_library(meshstage_room_${name} OBJECT)
      meshstage_configure_target(meshstage_room_${name})
      target_include_directories(meshstage_room_${name} PRIVATE "${PROJECT_BINARY_DIR}/include")
      target_link_libraries(meshstage_room_${name} PRIVATE Threads::Threads)
      target_sources(meshstage PRIVATE $<TARGET_OBJECTS:meshstage_room_${name}>)
    endif()
    target_sources(meshstage_room_${name} PRIVATE
      ${ROOM_SOURCES} ${ROOM_HEADERS} ${ROOM_INTERNAL_HEADERS} ${ROOM_PRIVATE_HEADERS})
    target_link_libraries(meshstage_room_${name} PRIVATE ${ROOM_LIBRARIES} ${ROOM_HEADER_LIBRARIES})
    target_link_libraries(meshstage PRIVATE ${ROOM_LIBRARIES})
    set_property(GLOBAL APPEND PROPERTY MESHSTAGE_ROOM_${name}_LIBRARIES ${ROOM_LIBRARIES})
  endif()

  if(ROOM_INTERNAL)
    list(APPEND ROOM_INTERNAL_HEADERS ${ROOM_HEADERS})
    set(ROOM_HEADERS "")
  endif()
  foreach(header IN LISTS ROOM_HEADERS)
    target_sources(meshstage PUBLIC FILE_SET HEADERS BASE_DIRS "${PROJECT_BINARY_DIR}/include"
      FILES "${PROJECT_BINARY_DIR}/include/meshstage/${folder}/${header}")
  endforeach()
  foreach(header IN LISTS ROOM_FOREIGN_HEADERS)
    target_sources(meshstage PUBLIC FILE_SET foreign_headers TYPE HEADERS BASE_DIRS "${PROJECT_BINARY_DIR}/include"
      FILES "${PROJECT_BINARY_DIR}/include/meshstage/${folder}/${header}")
  endforeach()
  list(APPEND ROOM_HEADERS ${ROOM_FOREIGN_HEADERS})
  foreach(kind IN ITEMS HEADERS INTERNAL_HEADERS PRIVATE_HEADERS)
    foreach(header IN LISTS ROOM_${kind})
      set_property(GLOBAL APPEND PROPERTY MESHSTAGE_ROOM_TABLE "${kind} ${folder}/${header}")
    endforeach()
  endforeach()
endfunction()

# meshstage_room_closure(NAME VARIABLE): NAME and every room that it needs, directly or not.
function(meshstage_room_closure name variable)
  set(found ${name})
  get_property(needs GLOBAL PROPERTY MESHSTAGE_ROOM_${name}_NEEDS)
  foreach(need IN LISTS needs)
    meshstage_room_closure(${need} more)
    list(APPEND found ${more})
  endforeach()
  list(REMOVE_DUPLICATES found)
  set(${variable} ${found} PARENT_SCOPE)
endfunction()

# Writes the table of rooms for tests/structure, and adds the target room_links: each room, linked with nothing but
# the rooms it needs, has no undefined symbol. (Sanitizers leave symbols for the program to define.)
function(meshstage_finish_rooms)
  get_property(table GLOBAL PROPERTY MESHSTAGE_ROOM_TABLE)
  string(JOIN "\n" text ${table})
  file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/rooms.txt" CONTENT "${text}\n" @ONLY)
  if(NOT PROJECT_IS_TOP_LEVEL OR CMAKE_CXX_FLAGS MATCHES "-fsanitize")
    return()
  endif()
  add_custom_target(room_links)
  get_property(rooms GLOBAL PROPERTY MESHSTAGE_ROOMS)
  foreach(room IN LISTS rooms)
    if(NOT TARGET meshstage_room_${room})
      continue()  # headers alone
    endif()
    add_library(meshstage_links_${room} SHARED EXCLUDE_FROM_ALL)
    set_target_properties(meshstage_links_${room} PROPERTIES LINKER_LANGUAGE CXX
      LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/room_links")
    target_link_options(meshstage_links_${room} PRIVATE LINKER:--no-undefined,--strip-all)
    target_link_libraries(meshstage_links_${room} PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
    meshstage_room_closure(${room} closure)
    foreach(part IN LISTS closure)
      if(TARGET meshstage_room_${part})
        get_property(libraries GLOBAL PROPERTY MESHSTAGE_ROOM_${part}_LIBRARIES)
        target_sources(meshstage_links_${room} PRIVATE $<TARGET_OBJECTS:meshstage_room_${part}>)
        target_link_libraries(meshstage_links_${room} PRIVATE ${libraries})
      endif()
    endforeach()
    add_dependencies(room_links meshstage_links_${room})
  endforeach()
endfunction()
