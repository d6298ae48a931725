// SPDX-License-Identifier: MIT
#include "models/model.h"

#include <fmt/format.h>

#include <algorithm>

namespace sh::models {

#define SH_PLUGIN(name) extern const ArchDef name;
#include "arch_list.inc"
#undef SH_PLUGIN

std::span<const ArchDef* const> architectures() {
#define SH_PLUGIN(name) &name,
  static constexpr const ArchDef* kArchitectures[] = {
#include "arch_list.inc"
  };
#undef SH_PLUGIN
  return kArchitectures;
}

Result<std::unique_ptr<Model>> load_model(const gguf::File& file, const Repacking* repacking) {
  SH_ASSIGN(const std::string arch, file.require_string("general.architecture"));
  std::string known;
  for (const ArchDef* def : architectures()) {
    if (arch == def->gguf_name) {
      WeightStore store(file);
      if (repacking != nullptr) SH_RETURN_IF_ERROR(store.reserve_packed(*repacking->kernels));
      Result<std::unique_ptr<Model>> model = def->load(store);
      if (model.ok() && repacking != nullptr) store.pack(*repacking->pool);
      if (!model.ok()) return Error{model.error().kind, fmt::format("{}: {}", file.path(), model.error().message)};
      return model;
    }
    known += fmt::format("{}{}", known.empty() ? "" : ", ", def->gguf_name);
  }
  return Error{ErrorKind::unsupported,
               fmt::format("{}: key general.architecture: \"{}\" is not supported; known: {}", file.path(),
                           arch.substr(0, 64), known)};
}

namespace {

struct Part {
  kv::SequenceCache* sequence;
  int64_t n_tokens;
};

/// The sequences of a batch with their number of tokens.
std::vector<Part> parts_of(const Batch& batch) {
  std::vector<Part> parts;
  for (size_t t = 0; t < batch.sequences.size(); ++t) {
    const bool is_new = parts.empty() || parts.back().sequence != batch.sequences[t];
    if (is_new) parts.push_back({batch.sequences[t], 0});
    SH_CHECK(batch.pos[t] == parts.back().sequence->next_pos() + parts.back().n_tokens,
             "batch: positions continue their sequence");
    ++parts.back().n_tokens;
  }
  std::vector<const kv::SequenceCache*> seen;
  for (const Part& part : parts) seen.push_back(part.sequence);
  std::sort(seen.begin(), seen.end());
  SH_CHECK(std::adjacent_find(seen.begin(), seen.end()) == seen.end(),
           "batch: tokens of one sequence are neighbours");
  return parts;
}

}  // namespace

Result<void> run_batch(const Model& model, ops::OpContext& ctx, const Batch& batch, MatView<float> logits,
                       ops::AttentionTap* tap) {
  const size_t n = batch.ids.size();
  SH_CHECK(batch.pos.size() == n && batch.sequences.size() == n,
           "batch: ids, positions and sequences differ in number");
  SH_CHECK(logits.rows == static_cast<int64_t>(batch.logit_rows.size()),
           "batch: one row of logits a wanted token");
  SH_CHECK(logits.rows == 0 || logits.cols == model.info().n_vocab, "batch: logits as wide as the vocabulary");
  for (const int32_t row : batch.logit_rows)
    SH_CHECK(row >= 0 && row < static_cast<int64_t>(n), "batch: logit row outside the batch");
  for (const int32_t id : batch.ids)
    if (id < 0 || id >= model.info().n_vocab)
      return Error{ErrorKind::invalid_argument,
                   fmt::format("token id {} is outside the vocabulary of {}", id, model.info().n_vocab)};
  if (n == 0) return {};

  const std::vector<Part> parts = parts_of(batch);
  for (size_t i = 0; i < parts.size(); ++i) {
    const Result<void> reserved = parts[i].sequence->reserve(parts[i].n_tokens);
    if (reserved.ok()) continue;
    for (size_t undo = 0; undo < i; ++undo) parts[undo].sequence->rollback();
    return reserved.error();
  }
  model.forward(ctx, batch, logits, tap);
  for (const Part& part : parts) part.sequence->commit(part.n_tokens);
  return {};
}

}  // namespace sh::models
