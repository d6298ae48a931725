// SPDX-License-Identifier: MIT
#include "tools/compact_eval.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/clock.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/mapped_file.h"

namespace sh::tools {

namespace {

using engine::CompactionReport;
using engine::Engine;
using engine::ReferenceQueries;
using kv::SequenceCache;

constexpr int64_t kMaxAnswerTokens = 32;
constexpr int64_t kProseContinuation = 256;

std::vector<int32_t> encode(const Engine& engine, const std::string& text) { return engine.tokenizer().encode(text, {.add_special = false, .parse_special = false}); }

/// The bytes of the tokens, nothing tidied.
std::string text_of(const Engine& engine, std::span<const int32_t> ids) {
  std::string text;
  for (const int32_t id : ids) text += engine.tokenizer().piece(id, false);
  return text;
}

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

std::span<const float> row_of(const Mat<float>& m, int64_t r) { return {m.row(r), static_cast<size_t>(m.cols)}; }

int32_t argmax(std::span<const float> logits) { return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()); }

/// The document as a system message, without a turn after it.
Result<std::vector<int32_t>> document_tokens(const Engine& engine, const std::string& text) {
  const tokenizer::Tokenizer& tokenizer = engine.tokenizer();
  chat::PromptInput input;
  input.messages = Json::array({{{"role", "system"}, {"content", text}}});
  input.add_generation_prompt = false;
  if (tokenizer.data().bos != tokenizer::kNoToken) input.bos_token = tokenizer.piece(tokenizer.data().bos, true);
  if (tokenizer.data().eos != tokenizer::kNoToken) input.eos_token = tokenizer.piece(tokenizer.data().eos, true);
  SH_ASSIGN(const std::string prompt, engine.chat_template().apply(input));
  return tokenizer.encode(prompt, {.add_special = false, .parse_special = true});
}

/// Logits that predict each of `continuation` after `prompt`, teacher-forced from a fork. Shape [continuation, n_vocab].
Result<Mat<float>> forced_logits(Engine& engine, const SequenceCache& sequence, const std::vector<int32_t>& prompt, const std::vector<int32_t>& continuation) {
  SequenceCache fork = sequence.fork();
  std::vector<int32_t> ids = prompt;
  ids.insert(ids.end(), continuation.begin(), continuation.end() - 1);
  SH_ASSIGN(Mat<float> all, engine.prefill(fork, ids, {.all_logits = true}));
  const auto n = static_cast<int64_t>(continuation.size());
  Mat<float> out(n, all.cols);
  std::copy_n(all.row(all.rows - n), n * all.cols, out.data.begin());
  return out;
}

/// Greedy answer to a prompt, its end token included when it came. With the logits that chose each token.
struct Answer {
  std::vector<int32_t> ids;
  std::string text;
  Mat<float> logits;
};
Result<Answer> greedy_answer(Engine& engine, const SequenceCache& sequence, const std::vector<int32_t>& prompt) {
  SequenceCache fork = sequence.fork();
  Answer answer;
  std::vector<float> logits;
  SH_ASSIGN(Mat<float> last, engine.prefill(fork, prompt));
  std::vector<int32_t> text_ids;
  for (;;) {
    const int32_t id = argmax(row_of(last, 0));
    logits.insert(logits.end(), last.data.begin(), last.data.end());
    answer.ids.push_back(id);
    if (engine.tokenizer().is_end_of_generation(id)) break;
    text_ids.push_back(id);
    if (static_cast<int64_t>(answer.ids.size()) >= kMaxAnswerTokens) break;
    SH_ASSIGN(last, engine.prefill(fork, std::span(&id, 1)));
  }
  answer.text = trimmed(text_of(engine, text_ids));
  answer.logits.rows = static_cast<int64_t>(answer.ids.size());
  answer.logits.cols = last.cols;
  answer.logits.data = std::move(logits);
  return answer;
}

double mean_nll(const Mat<float>& logits, const std::vector<int32_t>& ids) {
  double sum = 0;
  for (size_t i = 0; i < ids.size(); ++i) sum += negative_log_likelihood(row_of(logits, static_cast<int64_t>(i)), ids[i]);
  return sum / static_cast<double>(ids.size());
}

/// What the full cache says of one question or passage: the reference for every method.
struct Reference {
  std::string kind, expected;
  double depth = -1;
  bool is_question = false;
  std::vector<int32_t> prompt;      // fed first
  std::vector<int32_t> forced;      // then these: the full cache's own answer, or the passage
  Mat<float> full_logits;           // [forced, n_vocab]
  std::vector<double> none_nll;     // [forced] without the context
  std::vector<int32_t> gold;        // the expected answer as tokens
  std::string full_answer;
  bool is_right_with_full = false;
  std::string question;
};

/// A document read into a cache, with everything that the methods are compared to.
struct Subject {
  std::string context, id;
  std::vector<int32_t> ids;
  SequenceCache cache;
  double prefill_seconds = 0;
  std::vector<Reference> references;
};

EvalItem item_of(const Subject& subject, int64_t index, const std::string& method, double ratio) {
  const Reference& r = subject.references[static_cast<size_t>(index)];
  EvalItem item{.context = subject.context, .document = subject.id, .kind = r.kind, .method = method, .index = index, .depth = r.depth, .ratio = ratio, .expected = r.expected};
  item.is_right_with_full = r.is_right_with_full;
  item.has_answer = r.is_question;
  return item;
}

Result<EvalItem> measure_item(Engine& engine, const Subject& subject, const SequenceCache& cache, int64_t index, const std::string& method, double ratio) {
  const Reference& r = subject.references[static_cast<size_t>(index)];
  EvalItem item = item_of(subject, index, method, ratio);
  SH_ASSIGN(const Mat<float> logits, forced_logits(engine, cache, r.prompt, r.forced));
  bool follows_full = true;
  for (size_t i = 0; i < r.forced.size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    item.tokens.push_back(compare_logits(row_of(r.full_logits, row), row_of(logits, row), r.forced[i]));
    if (!r.none_nll.empty()) item.tokens.back().nll_none = r.none_nll[i];
    follows_full = follows_full && argmax(row_of(logits, row)) == r.forced[i];
  }
  if (!r.is_question) {
    item.nll = mean_nll(logits, r.forced);
    return item;
  }
  item.answer = r.full_answer;
  if (!follows_full) {
    SH_ASSIGN(const Answer answer, greedy_answer(engine, cache, r.prompt));
    item.answer = answer.text;
  }
  item.is_right = item.answer == r.expected;
  item.is_same_as_full = item.answer == r.full_answer;
  SH_ASSIGN(const Mat<float> gold_logits, forced_logits(engine, cache, r.prompt, r.gold));
  item.nll = mean_nll(gold_logits, r.gold);
  return item;
}

// ---- cost ----

/// Tokens a second of decoding from each of two caches, alternating, medians of the repeats.
Result<std::pair<double, double>> decode_speeds(Engine& engine, const SequenceCache& a, const SequenceCache& b) {
  constexpr int kRepeats = 5, kTokens = 16;
  std::vector<double> speeds[2];
  for (int repeat = 0; repeat <= kRepeats; ++repeat)
    for (int side = 0; side < 2; ++side) {
      SequenceCache fork = (side == 0 ? a : b).fork();
      const int32_t id = 0;
      SH_RETURN_IF_ERROR(engine.prefill(fork, std::span(&id, 1)));  // takes the copy of the tail blocks
      const Stopwatch watch;
      for (int i = 0; i < kTokens; ++i) SH_RETURN_IF_ERROR(engine.prefill(fork, std::span(&id, 1)));
      if (repeat > 0) speeds[side].push_back(kTokens / watch.seconds());  // the first round warms up
    }
  return std::pair{quantile(speeds[0], 0.5), quantile(speeds[1], 0.5)};
}

/// Resident memory before and after a compaction in place, of a cache of its own.
Result<std::pair<double, double>> resident_memory(Engine& engine, const Subject& subject, const ReferenceQueries& queries, const engine::CompactionRequest& request) {
  SequenceCache own(engine.block_pool());
  SH_RETURN_IF_ERROR(engine.prefill(own, subject.ids));
  const auto before = static_cast<double>(resident_bytes());
  SH_RETURN_IF_ERROR(engine::compact_sequence(engine.executor(), own, queries, request));
  return std::pair{before, static_cast<double>(resident_bytes())};
}

EvalCost cost_of(const Subject& subject, const CompactionReport& report) {
  return {.n_tokens = static_cast<double>(subject.ids.size()),
          .bytes_before = static_cast<double>(report.bytes_before),
          .bytes_after = static_cast<double>(report.bytes_after),
          .seconds_total = report.total_seconds,
          .seconds_capture = report.capture_seconds,
          .seconds_select = report.select_seconds,
          .seconds_fit = report.fit_seconds,
          .seconds_prefill = subject.prefill_seconds,
          .fallback_heads = std::isnan(report.heldout_plain) ? report.heldout_plain : report.fallback_heads,  // nothing was fitted: unknown
          .heldout_plain = report.heldout_plain,
          .heldout_fitted = report.heldout_fitted,
          .study_conversations = static_cast<double>(report.study.n_conversations),
          .study_tokens = static_cast<double>(report.study.n_tokens)};
}

// ---- the run ----

class Runner {
 public:
  Runner(Engine& engine, const EvalOptions& options) : engine_(engine), options_(options) {}

  Result<std::vector<EvalCell>> run() {
    if (!options_.recall_files.empty()) {
      SH_ASSIGN(turn_, engine::turn_tokens(engine_));
      none_.emplace(engine_.block_pool());
      SH_ASSIGN(const std::vector<int32_t> empty, document_tokens(engine_, ""));
      if (!empty.empty()) SH_RETURN_IF_ERROR(engine_.prefill(*none_, empty));
    }
    for (const std::string& path : options_.recall_files) SH_RETURN_IF_ERROR(run_recall_file(path));
    for (const int64_t n_context : options_.prose_contexts)
      if (!options_.prose_files.empty()) SH_RETURN_IF_ERROR(run_prose(n_context));
    if (cells_.empty())
      return Error{ErrorKind::invalid_argument,
                   fmt::format("nothing measured: no document or passage fits a context of {} tokens (-c sets it) and the texts given", options_.max_context_tokens)};
    return std::move(cells_);
  }

 private:
  Result<void> run_recall_file(const std::string& path) {
    SH_ASSIGN(const std::vector<RecallDocument> documents, read_recall(path, options_.n_documents));
    const std::string label = label_of(path);
    int64_t n_done = 0;
    for (const RecallDocument& document : documents) {
      progress(label, n_done, static_cast<int64_t>(documents.size()));
      Subject subject{.context = label, .id = document.id, .cache = SequenceCache(engine_.block_pool())};
      SH_ASSIGN(subject.ids, document_tokens(engine_, document.context));
      if (!fits(subject.ids.size())) {
        log_warning("{}: {} tokens do not fit the context of {}; left out (-c sets the cache's size)", document.id, subject.ids.size(), options_.max_context_tokens);
        continue;
      }
      SH_RETURN_IF_ERROR(read_subject(subject));
      for (const RecallQuestion& question : document.questions) {
        SH_ASSIGN(Reference reference, ask_full(subject, question));
        subject.references.push_back(std::move(reference));
      }
      SH_RETURN_IF_ERROR(measure_subject(subject, n_done++ == 0));
    }
    return {};
  }

  Result<void> run_prose(int64_t n_context) {
    const std::string label = fmt::format("prose-{}", n_context);
    std::vector<std::pair<std::string, std::vector<int32_t>>> texts;
    for (const std::string& path : options_.prose_files) {
      SH_ASSIGN(const std::string text, read_file(path));
      texts.emplace_back(label_of(path), encode(engine_, text));
    }
    // Pieces are taken from the texts in turn, so that few pieces are spread over all of them.
    int64_t n_done = 0;
    for (int64_t piece = 0; n_done < options_.n_documents; ++piece) {
      bool any = false;
      for (const auto& [name, tokens] : texts) {
        const int64_t begin = piece * (n_context + kProseContinuation);
        if (n_done >= options_.n_documents || begin + n_context + kProseContinuation > static_cast<int64_t>(tokens.size()) ||
            !fits(static_cast<size_t>(n_context + kProseContinuation)))
          continue;
        any = true;
        progress(label, n_done, options_.n_documents);
        SH_RETURN_IF_ERROR(run_passage(label, fmt::format("{}-{}", name, piece), std::span(tokens).subspan(static_cast<size_t>(begin)), n_context, n_done == 0));
        ++n_done;
      }
      if (!any) break;
    }
    if (n_done == 0)
      log_warning("{}: no text has {} tokens, or they do not fit the context of {}; left out", label, n_context + kProseContinuation, options_.max_context_tokens);
    return {};
  }

  Result<void> run_passage(const std::string& label, const std::string& id, std::span<const int32_t> tokens, int64_t n_context, bool is_first) {
    Subject subject{.context = label, .id = id, .cache = SequenceCache(engine_.block_pool())};
    const auto& vocabulary = engine_.tokenizer();
    if (vocabulary.data().bos != tokenizer::kNoToken) subject.ids.push_back(vocabulary.data().bos);
    // The last token of the context is fed after the compaction: its logits predict the first token of the continuation.
    subject.ids.insert(subject.ids.end(), tokens.begin(), tokens.begin() + n_context - 1);
    SH_RETURN_IF_ERROR(read_subject(subject));
    Reference r{.kind = "prose"};
    r.prompt = {tokens[static_cast<size_t>(n_context - 1)]};
    r.forced.assign(tokens.begin() + n_context, tokens.begin() + n_context + kProseContinuation);
    SH_ASSIGN(r.full_logits, forced_logits(engine_, subject.cache, r.prompt, r.forced));
    SequenceCache none(engine_.block_pool());
    SH_RETURN_IF_ERROR(engine_.prefill(none, std::span(subject.ids).first(1)));
    SH_RETURN_IF_ERROR(fill_none(r, none));
    subject.references.push_back(std::move(r));
    none_.emplace(std::move(none));
    return measure_subject(subject, is_first);
  }

  bool fits(size_t n_tokens) const {
    return static_cast<int64_t>(n_tokens) + 2 * kMaxAnswerTokens <= options_.max_context_tokens;
  }

  Result<void> read_subject(Subject& subject) {
    const Stopwatch watch;
    SH_RETURN_IF_ERROR(engine_.prefill(subject.cache, subject.ids));
    subject.prefill_seconds = watch.seconds();
    // Read a second time with the capture on, so that the time above is that of a plain prefill.
    capture_.reset();
    if (needs_capture()) {
      capture_ = std::make_unique<engine::QueryCapture>(engine_.model(), engine_.kv_layout(), options_.methods.front().request.max_query_bytes, engine::kReadingStride);
      SequenceCache again(engine_.block_pool());
      const int64_t n_step = engine_.options().n_ubatch;
      for (int64_t at = 0; at < static_cast<int64_t>(subject.ids.size()); at += n_step) {
        const auto piece = std::span(subject.ids).subspan(static_cast<size_t>(at), static_cast<size_t>(std::min<int64_t>(n_step, static_cast<int64_t>(subject.ids.size()) - at)));
        std::vector<kv::Pos> pos;
        for (size_t i = 0; i < piece.size(); ++i) pos.push_back(again.next_pos() + static_cast<int64_t>(i));
        capture_->begin_batch(pos);
        SH_RETURN_IF_ERROR(engine_.prefill(again, piece, {.tap = capture_.get()}));
      }
    }
    return {};
  }

  bool needs_capture() const {
    return std::any_of(options_.methods.begin(), options_.methods.end(), [](const MethodSpec& spec) {
      const auto method = compaction::find_method(spec.request.method);
      return method.ok() && spec.request.queries.value_or((*method)->queries) .has(compaction::QuerySource::prefill);
    });
  }

  Result<Reference> ask_full(const Subject& subject, const RecallQuestion& question) {
    Reference r{.kind = "fact", .expected = question.answer, .depth = question.depth, .is_question = true, .question = question.question};
    r.prompt = turn_.user_open;
    const std::vector<int32_t> words = encode(engine_, question.question);
    r.prompt.insert(r.prompt.end(), words.begin(), words.end());
    r.prompt.insert(r.prompt.end(), turn_.user_close.begin(), turn_.user_close.end());
    SH_ASSIGN(Answer answer, greedy_answer(engine_, subject.cache, r.prompt));
    r.forced = std::move(answer.ids);
    r.full_logits = std::move(answer.logits);
    r.full_answer = answer.text;
    r.is_right_with_full = r.full_answer == r.expected;
    SH_RETURN_IF_ERROR(fill_none(r, *none_));
    // Answers may or may not begin with a space, depending on the template: the likelier form is the one scored.
    double best = 0;
    for (const char* lead : {" ", ""}) {
      const std::vector<int32_t> gold = encode(engine_, lead + question.answer);
      SH_ASSIGN(const Mat<float> logits, forced_logits(engine_, subject.cache, r.prompt, gold));
      const double nll = mean_nll(logits, gold);
      if (r.gold.empty() || nll < best) {
        r.gold = gold;
        best = nll;
      }
    }
    return r;
  }

  Result<void> fill_none(Reference& r, const SequenceCache& none) {
    SH_ASSIGN(const Mat<float> logits, forced_logits(engine_, none, r.prompt, r.forced));
    for (size_t i = 0; i < r.forced.size(); ++i) r.none_nll.push_back(negative_log_likelihood(row_of(logits, static_cast<int64_t>(i)), r.forced[i]));
    return {};
  }

  EvalCell& cell(const Subject& subject, const std::string& method, double ratio, const std::map<std::string, std::string>& options = {}) {
    for (EvalCell& c : cells_)
      if (c.context == subject.context && c.method == method && c.ratio == ratio) return c;
    cells_.push_back({.context = subject.context, .method = method, .options = options, .ratio = ratio});
    return cells_.back();
  }

  Result<void> measure_into(EvalCell& into, const Subject& subject, const SequenceCache& cache, const std::set<std::string>& asked) {
    for (size_t i = 0; i < subject.references.size(); ++i) {
      SH_ASSIGN(EvalItem item, measure_item(engine_, subject, cache, static_cast<int64_t>(i), into.method, into.ratio));
      item.was_asked_in_study = asked.contains(trimmed(subject.references[i].question));
      into.items.push_back(std::move(item));
    }
    return {};
  }

  Result<void> measure_subject(const Subject& subject, bool is_first) {
    const double bytes = static_cast<double>(subject.cache.usage().bytes), n_tokens = static_cast<double>(subject.ids.size());
    EvalCell& full = cell(subject, "full", 1);
    SH_RETURN_IF_ERROR(measure_into(full, subject, subject.cache, {}));
    full.costs.push_back({.n_tokens = n_tokens, .bytes_before = bytes, .bytes_after = bytes, .seconds_prefill = subject.prefill_seconds});
    EvalCell& none = cell(subject, "none", 0);
    SH_RETURN_IF_ERROR(measure_into(none, subject, *none_, {}));
    none.costs.push_back({.n_tokens = n_tokens, .bytes_before = bytes, .bytes_after = static_cast<double>(none_->usage().bytes), .seconds_prefill = subject.prefill_seconds});

    // Queries of one source and study serve all ratios and methods that use them.
    std::map<std::string, ReferenceQueries> gathered;
    for (const MethodSpec& spec : options_.methods) {
      SH_ASSIGN(const compaction::CompactionMethod* method, compaction::find_method(spec.request.method));
      const auto source = spec.request.queries.value_or(method->queries);
      const std::string key = fmt::format("{}/{}", compaction::name_of(source), spec.request.self_study.n_conversations);
      if (!gathered.contains(key)) {
        SH_ASSIGN(gathered[key], engine::gather_reference_queries(engine_.executor(), subject.cache, subject.ids, capture_.get(), spec.request));
      }
      const ReferenceQueries& queries = gathered[key];
      std::set<std::string> asked;
      for (const std::string& question : queries.study.questions) asked.insert(trimmed(question));
      for (const double ratio : options_.ratios) {
        engine::CompactionRequest request = spec.request;
        request.ratio = ratio;
        request.of_whole_cache = true;
        EvalCell& into = cell(subject, spec.label, ratio, spec.options);
        SequenceCache compacted = subject.cache.fork();
        const auto report = engine::compact_sequence(engine_.executor(), compacted, queries, request);
        if (!report.ok()) {
          into.refusals.push_back(fmt::format("{}: {}", subject.id, report.error().message));
          continue;
        }
        SH_RETURN_IF_ERROR(measure_into(into, subject, compacted, asked));
        EvalCost cost = cost_of(subject, *report);
        if (is_first) {
          SH_ASSIGN(const auto speeds, decode_speeds(engine_, subject.cache, compacted));
          std::tie(cost.decode_tps_before, cost.decode_tps_after) = speeds;
          SH_ASSIGN(const auto memory, resident_memory(engine_, subject, queries, request));
          std::tie(cost.rss_before, cost.rss_after) = memory;
        }
        into.costs.push_back(cost);
      }
    }
    return {};
  }

  void progress(const std::string& label, int64_t n_done, int64_t n) const {
    if (options_.has_progress) log_info("compact-eval: {}: document {} of {}, {:.0f} s", label, n_done + 1, n, watch_.seconds());
  }

  Engine& engine_;
  const EvalOptions& options_;
  Stopwatch watch_;
  engine::TurnTokens turn_;
  std::optional<SequenceCache> none_;
  std::unique_ptr<engine::QueryCapture> capture_;
  std::vector<EvalCell> cells_;
};

}  // namespace

Result<std::vector<EvalCell>> run_compact_eval(Engine& engine, const EvalOptions& options) { return Runner(engine, options).run(); }

}  // namespace sh::tools
