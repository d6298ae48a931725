// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/npy.h"
#include "tensor/dtype.h"

namespace sh {
namespace {

const std::string kGolden = std::string(SH_SOURCE_DIR) + "/tests/golden/";

struct GoldenFormat {
  Json entry;
  Mat<float> input, decoded;
  std::string bytes;
};

GoldenFormat load_golden(const std::string& name) {
  GoldenFormat golden;
  const auto manifest = parse_json(read_file(kGolden + "quant_manifest.json").value());
  golden.entry = manifest.value().at("types").at(name);
  golden.input = read_npy(kGolden + "quant/input.npy").value();
  golden.decoded = read_npy(kGolden + golden.entry.at("dequant").get<std::string>()).value();
  golden.bytes = read_file(kGolden + golden.entry.at("bytes").get<std::string>()).value();
  return golden;
}

double relative_mse(const std::vector<float>& x, const std::vector<float>& y) {
  double error = 0, power = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    error += (static_cast<double>(x[i]) - y[i]) * (static_cast<double>(x[i]) - y[i]);
    power += static_cast<double>(x[i]) * x[i];
  }
  return error / power;
}

std::vector<std::byte> encode(const TensorFormat& format, const std::vector<float>& x) {
  std::vector<std::byte> blocks(static_cast<size_t>(row_bytes(format.dtype, static_cast<int64_t>(x.size()))));
  format.quantize(x.data(), static_cast<int64_t>(x.size()), blocks.data());
  return blocks;
}
std::vector<float> decode(const TensorFormat& format, const std::vector<std::byte>& blocks, size_t n) {
  std::vector<float> out(n);
  format.dequantize(blocks.data(), static_cast<int64_t>(n), out.data());
  return out;
}

TEST(GoldenFormats, DequantizingIsBitExact) {
  for (const TensorFormat* format : tensor_formats()) {
    if (format->dtype == DType::f32) continue;  // the peer's list has no f32
    SCOPED_TRACE(format->name);
    const GoldenFormat golden = load_golden(format->name);
    EXPECT_EQ(golden.entry.at("ggml_type_id").get<int>(), static_cast<int>(format->dtype));
    EXPECT_EQ(golden.entry.at("block_size").get<int>(), format->block_elements);
    EXPECT_EQ(golden.entry.at("type_size").get<int>(), format->block_bytes);
    ASSERT_EQ(golden.entry.at("row_bytes").get<int64_t>(), row_bytes(format->dtype, golden.input.cols));
    ASSERT_EQ(static_cast<int64_t>(golden.bytes.size()), row_bytes(format->dtype, 8 * 512));
    const auto raw = std::as_bytes(std::span(golden.bytes));
    const std::vector<float> out = decode(*format, {raw.begin(), raw.end()}, 8 * 512);
    int64_t n_different = 0;
    for (size_t i = 0; i < out.size(); ++i) n_different += std::memcmp(&out[i], &golden.decoded.data[i], 4) != 0;
    EXPECT_EQ(n_different, 0);
  }
}

TEST(GoldenFormats, PlainFormatsQuantizeToTheSameBytes) {
  for (const char* name : {"f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"}) {
    SCOPED_TRACE(name);
    const GoldenFormat golden = load_golden(name);
    const auto blocks = encode(tensor_format(dtype_from_name(name).value()), golden.input.data);
    ASSERT_EQ(blocks.size(), golden.bytes.size());
    int64_t n_different = 0;
    for (size_t i = 0; i < blocks.size(); ++i) n_different += static_cast<char>(blocks[i]) != golden.bytes[i];
    EXPECT_EQ(n_different, 0);
  }
}

// The manifest's rel_mse is Σ(x - decoded)² / Σx² over the whole tensor; this pins that reading on the peer's own
// bytes.
TEST(GoldenFormats, RelativeErrorIsComputedAsInTheManifest) {
  for (const TensorFormat* format : tensor_formats()) {
    if (format->dtype == DType::f32) continue;
    SCOPED_TRACE(format->name);
    const GoldenFormat golden = load_golden(format->name);
    const double expected = golden.entry.at("rel_mse").get<double>();
    EXPECT_NEAR(relative_mse(golden.input.data, golden.decoded.data), expected, 1e-4 * expected);
  }
}

// Other codes than the peer's are fine as long as the error is no larger. Measured, ours / peer's:
// q2_K 0.33, q3_K 0.95, q4_K 0.89, q5_K 0.86, q6_K 0.97, iq4_nl 0.79, iq4_xs 0.81, mxfp4 0.81.
TEST(GoldenFormats, SearchedFormatsAreAsCloseAsThePeer) {
  for (const char* name : {"q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_nl", "iq4_xs", "mxfp4"}) {
    SCOPED_TRACE(name);
    const GoldenFormat golden = load_golden(name);
    const TensorFormat& format = tensor_format(dtype_from_name(name).value());
    const auto decoded = decode(format, encode(format, golden.input.data), golden.input.data.size());
    const double error = relative_mse(golden.input.data, decoded);
    const double peer = golden.entry.at("rel_mse").get<double>();
    RecordProperty(std::string(name) + "_error_over_peer", std::to_string(error / peer));
    EXPECT_LE(error, peer);
  }
}

}  // namespace
}  // namespace sh
