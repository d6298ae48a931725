# SPDX-License-Identifier: MIT
# The tests of kernels with the AVX-512 set in SIMDe's emulation: its only run where the CPU has AVX2 at most.
find_path(SH_SIMDE simde/x86/avx512.h)
if(NOT SH_SIMDE OR NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU" OR NOT CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
  message(STATUS "AVX-512 kernels are not tested in emulation: that takes g++ for x86-64 and libsimde-dev")
  return()
endif()

set(source tests/kernels/emulated/avx512.cpp)
add_executable(kernels_tests_avx512 ${source} $<TARGET_OBJECTS:kernels_tests>)
target_link_libraries(kernels_tests_avx512 PRIVATE sh_kernels GTest::gtest_main)
# -O1: the emulated kernels are nine times as large as the real ones. No more optimisation, but not less: immediate
# operands are constants only once functions are inlined.
set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "-O1;-ffp-contract=off;-Wno-psabi")
add_test(NAME kernels_avx512 COMMAND kernels_tests_avx512 --gtest_filter=-Sets/*/generic:Sets/*/avx2)
set_tests_properties(kernels_avx512 PROPERTIES LABELS kernels ENVIRONMENT SHORTHAND_KERNELS=avx512)
