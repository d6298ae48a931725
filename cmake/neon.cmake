# SPDX-License-Identifier: MIT
# The tests of kernels for 64-bit Arm: cross-compiled with the rest, run by qemu-user.
find_program(SH_ARM_COMPILER aarch64-linux-gnu-g++)
find_program(SH_ARM_EMULATOR qemu-aarch64)
find_path(SH_GOOGLETEST src/gtest-all.cc PATHS /usr/src/googletest/googletest NO_DEFAULT_PATH)
if(NOT SH_ARM_COMPILER OR NOT SH_ARM_EMULATOR OR NOT SH_GOOGLETEST)
  message(STATUS "NEON kernels are not tested: that takes g++-aarch64-linux-gnu, qemu-user and googletest")
  return()
endif()

include(ExternalProject)
set(build ${CMAKE_BINARY_DIR}/aarch64)
# -O1 (the kernels have -O2) builds in two thirds of the time; one job, among those of this build.
ExternalProject_Add(kernels_tests_aarch64
  SOURCE_DIR ${CMAKE_SOURCE_DIR}
  BINARY_DIR ${build}
  PREFIX ${build}/project
  CMAKE_ARGS -DSHORTHAND_KERNELS_ONLY=ON
             -DCMAKE_TOOLCHAIN_FILE=${CMAKE_SOURCE_DIR}/cmake/aarch64-linux-gnu.cmake
             -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O1
             -DCMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER}
  BUILD_COMMAND ${CMAKE_COMMAND} --build ${build} --target kernels_tests -j 1
  BUILD_ALWAYS ON
  INSTALL_COMMAND "")

# A test of the kernels' tests on a CPU, with a set forced: ChooseKernels.TheEnvironmentForcesIt fails where it lacks.
function(sh_arm_test name cpu set filter)
  add_test(NAME ${name} COMMAND ${SH_ARM_EMULATOR} -cpu ${cpu} ${build}/kernels_tests --gtest_filter=${filter})
  set_tests_properties(${name} PROPERTIES LABELS kernels ENVIRONMENT SHORTHAND_KERNELS=${set})
endfunction()
# Neoverse N1 has dot products and little beyond, so an instruction that the set does not ask for ends the test. The
# generic set is tested natively.
sh_arm_test(kernels_neon neoverse-n1 neon -Sets/*/generic)
# Cortex-A53 has no dot products: the same program runs there with the generic set.
sh_arm_test(kernels_without_neon cortex-a53 generic ChooseKernels.*:KernelSets.*)
