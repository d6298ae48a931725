// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>

namespace sh {

/// "AMD EPYC 9755, 2 cores, 23.4 GiB": what a figure was measured on.
std::string machine_name();
/// CPU model alone.
std::string cpu_name();
/// What the last cache before memory holds, of all its instances together; 0 where the system does not say.
/// `root`: where Linux describes the processors.
int64_t last_level_cache_bytes(const std::string& root = "/sys/devices/system/cpu");
/// Resident memory of this process; gives freed heap pages back to the operating system first, so that what remains is in use.
int64_t resident_bytes();
/// Highest resident memory since the start or the last reset_peak_resident_bytes(). 0 where the system does not say.
int64_t peak_resident_bytes();
void reset_peak_resident_bytes();

}  // namespace sh
