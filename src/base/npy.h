// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "base/mat_view.h"
#include "base/result.h"

namespace sh {

/// A float32 array file of NumPy, format 1.0, little-endian, C order. A 1-D array reads as one row.
/// Source:  NumPy enhancement proposal 1, "A simple file format for NumPy arrays".
Result<Mat<float>> read_npy(const std::string& path);
Result<void> write_npy(const std::string& path, MatView<const float> matrix);

}  // namespace sh
