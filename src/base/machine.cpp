// SPDX-License-Identifier: MIT
#include "base/machine.h"

#include <fmt/format.h>
#include <malloc.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <vector>

#include "base/thread_pool.h"

namespace sh {

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown CPU";
}

std::string machine_name() {
  const double gib = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE)) / (1 << 30);
  const int n = hardware_threads();
  return fmt::format("{}, {} core{}, {:.1f} GiB", cpu_name(), n, n == 1 ? "" : "s", gib);
}

namespace {

/// The first word of a file; "" when there is none.
std::string first_word(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

/// Entries of a folder whose names are `prefix` and a number.
std::vector<std::filesystem::path> numbered(const std::filesystem::path& folder, const std::string& prefix) {
  std::vector<std::filesystem::path> found;
  std::error_code code;
  for (const auto& entry : std::filesystem::directory_iterator(folder, code)) {
    const std::string name = entry.path().filename().string();
    if (name.size() > prefix.size() && name.starts_with(prefix) &&
        name.find_first_not_of("0123456789", prefix.size()) == std::string::npos)
      found.push_back(entry.path());
  }
  return found;
}

}  // namespace

int64_t last_level_cache_bytes(const std::string& root) {
  int last_level = 0;
  std::map<std::string, int64_t> bytes;  // of the last level, by the processors that share an instance
  for (const auto& cpu : numbered(root, "cpu"))
    for (const auto& cache : numbered(cpu / "cache", "index")) {
      const int level = std::atoi(first_word(cache / "level").c_str());
      if (level < last_level) continue;
      if (level > last_level) bytes.clear();
      last_level = level;
      const std::string size = first_word(cache / "size");  // "32768K"
      const int64_t unit = size.ends_with('M') ? 1 << 20 : size.ends_with('K') ? 1 << 10 : 1;
      bytes[first_word(cache / "shared_cpu_list")] = std::atoll(size.c_str()) * unit;
    }
  int64_t sum = 0;
  for (const auto& [cpus, size] : bytes) sum += size;
  return sum;
}

int64_t resident_bytes() {
  malloc_trim(0);
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

int64_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmHWM:", 0) == 0) return std::atoll(line.c_str() + 6) * 1024;
  return 0;
}
void reset_peak_resident_bytes() {
  std::ofstream("/proc/self/clear_refs") << "5";
}

}  // namespace sh
