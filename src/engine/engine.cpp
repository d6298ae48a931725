// SPDX-License-Identifier: MIT
#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

#include "base/env.h"
#include "engine/measure_profile.h"
#include "engine/region_plan.h"
#include "engine/vocabulary.h"

namespace sh::engine {

namespace {

/// Tokens that a conversation may have when positions are given anew: as many as can be counted with care.
constexpr int64_t kEndlessContext = int64_t{1} << 30;

/// Share of the KV capacity on top of it that only compaction may use: the conversations of a self-study append to forks of the cache
/// that is full. A sixteenth, and at least what 64 study conversations of 128 tokens need.
int64_t study_headroom_tokens(int64_t n_ctx) { return std::max<int64_t>(n_ctx / 16, 64 * 128); }

Result<std::string> chat_template_source(const gguf::File& file, const EngineOptions& options) {
  if (!options.chat_template.empty()) return options.chat_template;
  SH_ASSIGN(const auto own, file.find_string("tokenizer.chat_template"));
  return own.value_or(chat::kChatMlTemplate);
}

std::string mib(int64_t bytes) { return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20)); }

}  // namespace

Result<std::unique_ptr<Engine>> Engine::open(EngineOptions options) {
  auto engine = std::unique_ptr<Engine>(new Engine());
  Engine& e = *engine;
  if (options.model_path.empty())
    return Error{ErrorKind::invalid_argument, "no model given: name a GGUF file with -m FILE (models/scribe.gguf comes with the program)"};
  if (options.n_parallel < 1 || options.n_parallel > 256)
    return Error{ErrorKind::invalid_argument, fmt::format("-np: expected 1 to 256 conversations, got {}", options.n_parallel)};
  if (options.n_ubatch < 1 || options.n_batch < 1)
    return Error{ErrorKind::invalid_argument, fmt::format("-b and -ub: expected at least 1 token, got {} and {}", options.n_batch, options.n_ubatch)};
  if (options.step_ms < 0)
    return Error{ErrorKind::invalid_argument,
                 fmt::format("--step-ms: expected at least 0 (no limit), got {}", options.step_ms)};
  if (options.n_ctx > std::numeric_limits<int32_t>::max())
    return Error{ErrorKind::invalid_argument, fmt::format("-c: expected at most {} tokens, which positions can number, got {}",
                                                          std::numeric_limits<int32_t>::max(), options.n_ctx)};
  if (!(options.compact_threshold >= 0 && options.compact_threshold <= 1))
    return Error{ErrorKind::invalid_argument, fmt::format("--compact-threshold: expected a fraction from 0 (off) to 1, got {}", options.compact_threshold)};
  if (options.compact_threshold > 0 && (!(options.compact_ratio > 1) || !std::isfinite(options.compact_ratio)))
    return Error{ErrorKind::invalid_argument,
                 fmt::format("--compact-ratio: expected more than 1, got {}", options.compact_ratio)};
  // Also while it is off: chat's /compact goes by it.
  if (const auto method = compaction::find_method(options.compact_method); !method.ok())
    return Error{ErrorKind::invalid_argument, fmt::format("--compact-method: {}", method.error().message)};
  CompactionRequest scratch{.target = {options.compact_target_kl, options.compact_target_head_error},
                            .max_kl = options.compact_max_kl};
  if (const auto checked = check_request(scratch); !checked.ok())
    return Error{checked.error().kind,
                 fmt::format("flags of compaction (--compact-...): {}", checked.error().message)};
  for (const auto& [name, value] : options.compact_options)
    if (const auto set = set_option(scratch, name, value); !set.ok())
      return Error{set.error().kind, fmt::format("--compact-options: {}", set.error().message)};
  scratch.method = options.compact_method;
  SH_ASSIGN(const compaction::CompactionMethod method, method_of(scratch));
  if (method.queries.is_none() && method.needs_queries())
    return Error{ErrorKind::invalid_argument,
                 fmt::format("--compact-options: queries=none leaves '{}' nothing to choose or fit rows by; name a "
                             "source, or score=recency and fit=none",
                             options.compact_method)};
  if (scratch.budget == compaction::BudgetPolicy::profile && options.compact_profile.empty())
    return Error{ErrorKind::invalid_argument,
                 "--compact-options: budget=profile needs --compact-profile FILE; 'shorthand profile' measures one"};
  for (const DType dtype : {options.type_k, options.type_v})
    if (!kernels::is_kv_dtype(dtype))
      return Error{ErrorKind::unsupported, fmt::format("-ctk/-ctv: {} cannot hold a KV cache; use one of {}",
                                                       tensor_format(dtype).name, kernels::kv_dtype_names())};

  if (options.kernels.empty()) options.kernels = env::kernels().value_or("");
  SH_ASSIGN(e.kernels_, kernels::choose_kernels(options.kernels));
  SH_ASSIGN(e.file_, gguf::File::open(options.model_path));
  e.executor_ = std::make_unique<Executor>(e, options.n_threads > 0 ? options.n_threads : hardware_threads());
  const models::Repacking repacking{.kernels = e.kernels_, .pool = &e.executor_->thread_pool()};
  SH_ASSIGN(e.model_, models::load_model(e.file_, options.repacks ? &repacking : nullptr));
  SH_ASSIGN(auto vocabulary, read_vocabulary(e.file_));
  const models::ModelInfo& info = e.model_->info();
  if (static_cast<int64_t>(vocabulary.pieces.size()) != info.n_vocab)
    return Error{ErrorKind::corrupt, fmt::format("'{}': the vocabulary has {} tokens, the embedding table {} rows", options.model_path,
                                                 vocabulary.pieces.size(), info.n_vocab)};
  SH_ASSIGN(e.tokenizer_, tokenizer::Tokenizer::create(std::move(vocabulary)));
  SH_ASSIGN(auto template_source, chat_template_source(e.file_, options));
  SH_ASSIGN(e.chat_template_, chat::ChatTemplate::parse(std::move(template_source)));

  e.n_ctx_ = options.n_ctx > 0 ? options.n_ctx : info.n_ctx_train;
  e.n_ctx_slot_ = options.is_kv_unified ? e.n_ctx_ : e.n_ctx_ / options.n_parallel;
  if (e.n_ctx_slot_ < 1)
    return Error{ErrorKind::invalid_argument, fmt::format("-c {} leaves no room for {} conversations", e.n_ctx_, options.n_parallel)};
  if (options.compact_rebase && !options.compact_pinned.empty())
    return Error{ErrorKind::invalid_argument,
                 "--compact-pin names positions and --compact-rebase gives them anew; use one of them"};
  e.n_ctx_logical_ = e.n_ctx_slot_;
  if (options.compact_threshold > 0)
    e.n_ctx_logical_ = options.compact_rebase ? kEndlessContext : std::max<int64_t>(e.n_ctx_slot_, info.n_ctx_train);
  const kv::KvLayout layout{.layers = e.model_->kv_layers(), .key_type = options.type_k, .value_type = options.type_v};
  SH_RETURN_IF_ERROR(layout.validate());
  const int64_t budget_tokens = e.n_ctx_ + options.n_parallel * kv::kBlockRows + study_headroom_tokens(e.n_ctx_);
  SH_ASSIGN(e.block_pool_, kv::BlockPool::create(layout, budget_tokens * layout.bytes_per_token()));

  if (!options.compact_profile.empty()) {
    SH_ASSIGN(e.head_profile_, load_profile(e, options.compact_profile));
  }
  e.alias_ = options.model_alias.empty() ? std::filesystem::path(options.model_path).filename().string() : options.model_alias;
  e.options_ = std::move(options);
  return engine;
}

Engine::~Engine() = default;

std::string Engine::kernel_choice() const { return kernels::describe_choice(*kernels_, options_.kernels); }

Result<std::string> Engine::render_messages(Json messages, bool add_generation_prompt) const {
  const tokenizer::VocabularyData& vocabulary = tokenizer_->data();
  chat::PromptInput input;
  input.messages = std::move(messages);
  input.add_generation_prompt = add_generation_prompt;
  if (vocabulary.bos != tokenizer::kNoToken) input.bos_token = tokenizer_->piece(vocabulary.bos, true);
  if (vocabulary.eos != tokenizer::kNoToken) input.eos_token = tokenizer_->piece(vocabulary.eos, true);
  return chat_template_->apply(input);
}

std::string Engine::length_limit() const {
  if (!compacts_automatically())
    return fmt::format("the context has {} tokens (raise -c, or let it be compacted: --compact-threshold 0.9)",
                       n_ctx_logical_);
  if (n_ctx_logical_ == model_->info().n_ctx_train)
    return fmt::format("the model was trained for {} tokens (--compact-rebase gives positions anew and goes on)",
                       n_ctx_logical_);
  return fmt::format("the context has {} tokens (raise -c, or give positions anew: --compact-rebase)",
                     n_ctx_logical_);
}

std::vector<std::string> Engine::describe() const {
  const models::ModelInfo& info = model_->info();
  const int64_t token_bytes = kv_layout().bytes_per_token();
  return {
      fmt::format("model    {} ({} {}, {:.2f} M parameters, {})", alias_, info.arch, info.file_type,
                  static_cast<double>(info.n_params) * 1e-6, mib(info.weight_bytes)),
      fmt::format("kernels  {}", kernel_choice()),
      fmt::format("threads  {}", executor_->thread_pool().n_threads()),
      fmt::format("memory   KV cache of {} tokens: {} bytes a token (K {}, V {}), {} at most, committed as it fills and given back when freed",
                  n_ctx_, token_bytes, tensor_format(kv_layout().key_type).name, tensor_format(kv_layout().value_type).name,
                  mib(n_ctx_ * token_bytes)),
  };
}

std::string Engine::describe_conversations() const {
  const std::string compaction =
      compacts_automatically()
          ? fmt::format(" in {} rows: compacted {:.3g}x by '{}' at {:.0f} % full", n_ctx_slot_,
                        options_.compact_ratio, options_.compact_method, options_.compact_threshold * 100)
          : ", not compacted automatically (--compact-threshold is off)";
  return fmt::format("context  {} conversation{}, each up to {} tokens{}", options_.n_parallel,
                     options_.n_parallel == 1 ? "" : "s", n_ctx_logical_, compaction);
}

}  // namespace sh::engine
