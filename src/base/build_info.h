// SPDX-License-Identifier: MIT
#pragma once

namespace sh {

/// What this binary was built from; written by the build.
struct BuildInfo {
  const char* version;       // "0.1.0"
  const char* commit;        // short hash, or "unknown" outside a checkout
  const char* build_number;  // commits up to it
  const char* compiler;
  const char* build_type;
};
const BuildInfo& build_info();

}  // namespace sh
