// SPDX-License-Identifier: MIT
// What the tests of this room share: a model with its pool and context, stepping it, comparing logits.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/npy.h"
#include "base/rng.h"
#include "models/model.h"
#include "models/workspace.h"

namespace sh::models {

inline std::string golden_path(const std::string& name) {
  return std::string(SH_SOURCE_DIR) + "/tests/golden/" + name;
}

inline std::vector<const kernels::KernelSet*> supported_kernels() {
  std::vector<const kernels::KernelSet*> sets;
  for (const kernels::KernelSet* set : kernels::kernel_sets())
    if (set->supported()) sets.push_back(set);
  return sets;
}

inline std::vector<int32_t> random_ids(int64_t n, uint64_t seed, int64_t n_vocab) {
  Rng rng(seed);
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int32_t& id : ids) id = static_cast<int32_t>(rng.next_below(static_cast<uint64_t>(n_vocab)));
  return ids;
}

/// A loaded model with a cache of its own and everything to step it.
struct Runner {
  explicit Runner(const gguf::File& file,
                  const kernels::KernelSet* set = kernels::choose_kernels("generic").value(), int n_threads = 2,
                  DType cache_type = DType::f32, bool repacks = true)
      : threads(n_threads) {
    const Repacking repacking{set, &threads};
    Result<std::unique_ptr<Model>> loaded = load_model(file, repacks ? &repacking : nullptr);
    if (!loaded.ok()) ADD_FAILURE() << loaded.error().message;
    model = std::move(loaded).value();
    kv::KvLayout layout;
    layout.layers = model->kv_layers();
    layout.key_type = layout.value_type = cache_type;
    pool = std::move(kv::BlockPool::create(layout, int64_t{64} << 20)).value();
    ctx.pool = &threads;
    ctx.kernels = set;
  }

  /// Sliding windows for the layers, 0 for none: no architecture has any of its own, and a forward pass takes them
  /// from the cache. Needs: no sequence yet.
  void set_windows(const std::vector<int32_t>& windows) {
    kv::KvLayout layout = pool->layout();
    ASSERT_EQ(windows.size(), layout.layers.size());
    for (size_t layer = 0; layer < windows.size(); ++layer) layout.layers[layer].window = windows[layer];
    pool = std::move(kv::BlockPool::create(layout, int64_t{64} << 20)).value();
  }

  kv::SequenceCache new_sequence() { return kv::SequenceCache(*pool); }

  /// Runs ids at the end of the sequence; logits of every token.
  Mat<float> feed(kv::SequenceCache& sequence, const std::vector<int32_t>& ids, ops::AttentionTap* tap = nullptr) {
    return feed_many({&sequence}, {ids}, tap);
  }

  /// One batch with a part for every sequence; logits of every token, part after part.
  Mat<float> feed_many(const std::vector<kv::SequenceCache*>& sequences,
                       const std::vector<std::vector<int32_t>>& parts, ops::AttentionTap* tap = nullptr) {
    std::vector<int32_t> ids, rows;
    std::vector<kv::Pos> pos;
    std::vector<kv::SequenceCache*> owners;
    for (size_t s = 0; s < parts.size(); ++s)
      for (size_t i = 0; i < parts[s].size(); ++i) {
        rows.push_back(static_cast<int32_t>(ids.size()));
        ids.push_back(parts[s][i]);
        pos.push_back(sequences[s]->next_pos() + static_cast<int64_t>(i));
        owners.push_back(sequences[s]);
      }
    Mat<float> logits(static_cast<int64_t>(ids.size()), model->info().n_vocab);
    const Batch batch{.ids = ids, .pos = pos, .sequences = owners, .logit_rows = rows};
    const Result<void> done = run_batch(*model, ctx, workspace, batch, logits.view(), tap);
    EXPECT_TRUE(done.ok()) << (done.ok() ? "" : done.error().message);
    return logits;
  }

  ThreadPool threads;
  std::unique_ptr<Model> model;
  std::unique_ptr<kv::BlockPool> pool;
  ops::OpContext ctx;
  Workspace workspace;
};

inline int32_t argmax(const float* row, int64_t n) {
  return static_cast<int32_t>(std::max_element(row, row + n) - row);
}

struct Difference {
  double max = 0.0, rms = 0.0;
};
/// A NaN on either side counts as infinite.
inline Difference compare(const Mat<float>& a, const Mat<float>& b) {
  Difference d;
  EXPECT_EQ(a.rows, b.rows);
  EXPECT_EQ(a.cols, b.cols);
  if (a.data.size() != b.data.size()) return {INFINITY, INFINITY};
  for (size_t i = 0; i < a.data.size(); ++i) {
    const double gap = std::abs(double{a.data[i]} - b.data[i]);
    d.max = std::isnan(gap) ? INFINITY : std::max(d.max, gap);
    d.rms += gap * gap;
  }
  d.rms = std::sqrt(d.rms / static_cast<double>(std::max<size_t>(1, a.data.size())));
  return d;
}

inline gguf::File open_golden(const std::string& name) {
  Result<gguf::File> file = gguf::File::open(golden_path(name));
  if (!file.ok()) ADD_FAILURE() << file.error().message;
  return std::move(file).value();
}

inline Mat<float> golden_matrix(const Json& name) {
  return read_npy(golden_path(name.get<std::string>())).value();
}

/// The models of a manifest in tests/golden.
inline Json golden_models(const std::string& manifest) {
  return parse_json(read_file(golden_path(manifest)).value()).value().at("models");
}

/// Keeps what the layers' attention saw, one call a layer.
struct Recorder : ops::AttentionTap {
  struct Seen {
    int32_t layer;
    Mat<float> queries, lse, out;
  };
  std::vector<Seen> seen;
  int32_t only_layer = -1;

  static Mat<float> copy(MatView<const float> view) {
    Mat<float> mat(view.rows, view.cols);
    for (int64_t r = 0; r < view.rows; ++r) std::copy(view.row(r), view.row(r) + view.cols, mat.row(r));
    return mat;
  }
  bool on_attention(int32_t layer, MatView<const float> queries, MatView<const float> lse,
                    MatView<const float> out) override {
    seen.push_back({layer, copy(queries), copy(lse), copy(out)});
    return false;
  }
  bool wants_layer(int32_t layer) const override { return only_layer < 0 || layer == only_layer; }
};

/// A toy model; the bytes stay alive with it.
struct TinyFile {
  TinyFile(const ArchDef& arch, uint64_t seed)
      : bytes(arch.tiny(seed).value()), file(gguf::File::parse(bytes, "tiny").value()) {}
  std::vector<std::byte> bytes;
  gguf::File file;
};

}  // namespace sh::models
