# SPDX-License-Identifier: MIT
# 64-bit Arm Linux with Debian's cross compiler; programs are static, so that qemu-user needs no libraries.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
