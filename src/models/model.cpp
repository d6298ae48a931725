// SPDX-License-Identifier: MIT
#include "models/model.h"

#include <fmt/format.h>

#include <optional>

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

Result<void> run_batch(const Model& model, ops::OpContext& ctx, Workspace& ws, const Batch& batch,
                       MatView<float> logits, ops::AttentionTap* tap) {
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

  const auto sequence_at = [&](int64_t token) -> kv::SequenceCache& {
    return *batch.sequences[static_cast<size_t>(token)];
  };
  int64_t n_reserved = 0;  // tokens
  std::optional<Error> failure;
  for_sequences(batch, [&](int64_t first, int64_t n_tokens) {
    if (failure) return;
    kv::SequenceCache& sequence = sequence_at(first);
    for (int64_t i = 0; i < n_tokens; ++i)
      SH_CHECK(batch.pos[static_cast<size_t>(first + i)] == sequence.next_pos() + i,
               "batch: positions continue their sequence, whose tokens are neighbours");
    const Result<void> reserved = sequence.reserve(n_tokens);
    if (reserved.ok())
      n_reserved = first + n_tokens;
    else
      failure = reserved.error();
  });
  if (failure) {
    for_sequences(batch, [&](int64_t first, int64_t) {
      if (first < n_reserved) sequence_at(first).rollback();
    });
    return *failure;
  }
  model.forward(ctx, ws, batch, logits, tap);
  for_sequences(batch, [&](int64_t first, int64_t n_tokens) { sequence_at(first).commit(n_tokens); });
  return {};
}

}  // namespace sh::models
