# SPDX-License-Identifier: MIT
# base, tensor, kernels and the tests of kernels, for another processor (SHORTHAND_KERNELS_ONLY): fmt and
# nlohmann-json as headers, which serve every processor, googletest from Debian's sources.
add_library(fmt_headers INTERFACE)
target_compile_definitions(fmt_headers INTERFACE FMT_HEADER_ONLY)

shorthand_room(base LINK Threads::Threads fmt_headers sh_build_info)
# One unit, so that fmt's sources are compiled once: 8 s for 45.
set_target_properties(sh_base PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
shorthand_room(tensor ROOMS base)
shorthand_plugins(tensor formats TensorFormat)
shorthand_room(kernels ROOMS tensor)
shorthand_plugins(kernels targets KernelSet)
target_compile_options(sh_kernels PRIVATE -O2)  # as they are meant to run, whatever the rest is built with

set(googletest /usr/src/googletest/googletest)
file(GLOB sources CONFIGURE_DEPENDS tests/kernels/*_test.cpp)
add_library(googletest STATIC ${googletest}/src/gtest-all.cc ${googletest}/src/gtest_main.cc)
target_include_directories(googletest SYSTEM PUBLIC ${googletest} ${googletest}/include)
target_compile_options(googletest PRIVATE -O0)
add_executable(kernels_tests ${sources})
target_include_directories(kernels_tests PRIVATE tests)
target_link_libraries(kernels_tests PRIVATE sh_kernels googletest)
