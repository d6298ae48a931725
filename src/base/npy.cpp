// SPDX-License-Identifier: MIT
#include "base/npy.h"

#include <fmt/format.h>

#include <cstring>

#include "base/mapped_file.h"

namespace sh {

namespace {
constexpr char kMagic[] = "\x93NUMPY\x01";

/// The integers of the "shape" tuple in an npy header.
std::vector<int64_t> parse_shape(const std::string& header) {
  std::vector<int64_t> shape;
  size_t at = header.find("'shape'");
  if (at == std::string::npos) return shape;
  at = header.find('(', at);
  const size_t end = header.find(')', at);
  if (at == std::string::npos || end == std::string::npos) return shape;
  for (size_t i = at + 1; i < end;) {
    if (header[i] < '0' || header[i] > '9') {
      ++i;
      continue;
    }
    int64_t value = 0;
    for (; i < end && header[i] >= '0' && header[i] <= '9'; ++i) value = std::min<int64_t>(value * 10 + (header[i] - '0'), int64_t{1} << 40);
    shape.push_back(value);
  }
  return shape;
}
}  // namespace

Result<Mat<float>> read_npy(const std::string& path) {
  SH_ASSIGN(const MappedFile file, MappedFile::open(path));
  const auto bytes = file.bytes();
  const auto bad = [&](const char* why) {
    return Error{ErrorKind::corrupt, fmt::format("'{}' is not a float32 .npy file of version 1: {}", path, why)};
  };
  if (bytes.size() < 10 || std::memcmp(bytes.data(), kMagic, 7) != 0) return bad("wrong magic");
  const size_t n_header = static_cast<size_t>(bytes[8]) | static_cast<size_t>(bytes[9]) << 8;
  if (bytes.size() < 10 + n_header) return bad("header cut short");
  const std::string header(reinterpret_cast<const char*>(bytes.data()) + 10, n_header);
  if (header.find("'<f4'") == std::string::npos) return bad("element type is not <f4");
  if (header.find("'fortran_order': False") == std::string::npos) return bad("not in C order");
  std::vector<int64_t> shape = parse_shape(header);
  if (shape.size() == 1) shape.insert(shape.begin(), 1);
  if (shape.size() != 2) return bad("not one- or two-dimensional");
  const size_t n_data = bytes.size() - 10 - n_header;
  if (shape[1] != 0 && static_cast<uint64_t>(shape[0]) > n_data / 4 / static_cast<uint64_t>(shape[1])) return bad("data cut short");
  Mat<float> matrix(shape[0], shape[1]);
  std::memcpy(matrix.data.data(), bytes.data() + 10 + n_header, matrix.data.size() * sizeof(float));
  return matrix;
}

Result<void> write_npy(const std::string& path, MatView<const float> matrix) {
  std::string header = fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", matrix.rows, matrix.cols);
  header.append((64 - (10 + header.size() + 1) % 64) % 64, ' ');
  header.push_back('\n');
  std::string out(kMagic, 7);
  out.push_back('\0');
  out.push_back(static_cast<char>(header.size() & 0xff));
  out.push_back(static_cast<char>(header.size() >> 8));
  out += header;
  for (int64_t r = 0; r < matrix.rows; ++r)
    out.append(reinterpret_cast<const char*>(matrix.row(r)), static_cast<size_t>(matrix.cols) * sizeof(float));
  return write_file(path, out);
}

}  // namespace sh
