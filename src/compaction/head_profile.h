// SPDX-License-Identifier: MIT
// Shares of the kept rows that the heads of a model get, measured once and stored.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sh::compaction {

struct HeadProfile {
  std::string model;   // what it was measured on: architecture and shape
  std::string method;  // whose error curves
  double ratio = 0;
  int32_t n_documents = 0;
  std::vector<std::vector<float>> shares;  // [layer][KV head], sum 1
};

}  // namespace sh::compaction
