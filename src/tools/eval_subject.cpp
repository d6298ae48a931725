// SPDX-License-Identifier: MIT
#include "tools/eval_subject.h"

#include <algorithm>

#include "base/clock.h"
#include "tools/eval_metrics.h"

namespace sh::tools {

namespace {

using engine::Engine;
using kv::SequenceCache;

constexpr int64_t kMaxAnswerTokens = 32;
/// A choice's thoughts may be long and a vocabulary large: logits of the first tokens are compared.
constexpr int64_t kMaxComparedTokens = 32;

Result<std::string> rendered(const Engine& engine, const char* role, const std::string& text) {
  return engine.render_messages(Json::array({{{"role", role}, {"content", text}}}), false);
}

std::vector<int32_t> joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// What tells the letters of a choice apart after a stub: their first tokens that differ; the stub gets what they
/// share.
void add_letters(const Engine& engine, int n_options, Reference& r) {
  std::vector<std::vector<int32_t>> words;
  for (int option = 0; option < n_options; ++option)
    words.push_back(encode_plain(engine, std::string(" ") + letter_of(option)));
  size_t n_shared = 0;
  const auto is_shared = [&](size_t at) {
    return std::all_of(words.begin(), words.end(),
                       [&](const auto& word) { return at + 1 < word.size() && word[at] == words[0][at]; });
  };
  while (is_shared(n_shared)) r.stub.push_back(words[0][n_shared++]);
  for (const auto& word : words) r.letters.push_back(word[n_shared]);
}

Result<void> measure_without_context(Engine& engine, Subject& subject) {
  return in_waves(engine.block_pool(), subject.references,
                  [&](std::span<Reference> references) -> Result<void> {
                    SH_ASSIGN(const Prompted prompted, prompted_with(engine.executor(), subject.none, references));
                    std::vector<Forced> forced;
                    for (size_t i = 0; i < references.size(); ++i) {
                      Reference& r = references[i];
                      forced.push_back({i, r.forced, [&r](int64_t at, std::span<const float> logits) {
                                          r.none_nll.push_back(
                                              negative_log_likelihood(logits, r.forced[static_cast<size_t>(at)]));
                                        }});
                    }
                    return force(engine.executor(), prompted, forced);
                  });
}

}  // namespace

std::vector<int32_t> encode_plain(const Engine& engine, const std::string& text) {
  return engine.tokenizer().encode(text, {.add_special = false, .parse_special = false});
}

std::string answer_text(const Engine& engine, std::span<const int32_t> ids, bool with_control) {
  std::string text;
  for (const int32_t id : ids)
    if (!engine.tokenizer().is_end_of_generation(id)) text += engine.tokenizer().piece(id, with_control);
  return trimmed(text);
}

Result<SubjectReader> SubjectReader::create(Engine& engine, int64_t n_choice_tokens) {
  SubjectReader reader(engine, n_choice_tokens);
  SH_ASSIGN(reader.turn_, engine::turn_tokens(engine));
  std::string opening;
  for (const int32_t id : reader.turn_.user_close) opening += engine.tokenizer().piece(id, true);
  reader.close_thought_ = closing_tag(opening);
  reader.none_.emplace(engine.block_pool());
  SH_ASSIGN(const std::vector<int32_t> empty, reader.document_tokens(""));
  if (!empty.empty()) SH_RETURN_IF_ERROR(engine.prefill(*reader.none_, empty));
  return reader;
}

Result<std::vector<int32_t>> SubjectReader::document_tokens(const std::string& text) const {
  auto prompt = rendered(*engine_, "system", text);
  if (!prompt.ok() || prompt->find(trimmed(text)) == std::string::npos) prompt = rendered(*engine_, "user", text);
  if (!prompt.ok()) return prompt.error();
  return engine_->tokenizer().encode(*prompt, {.add_special = false, .parse_special = true});
}

std::vector<int32_t> SubjectReader::user_turn(const std::string& text) const {
  return joined(joined(turn_.user_open, encode_plain(*engine_, text)), turn_.user_close);
}

Reference SubjectReader::question_reference(const RecallQuestion& question, const std::string& word) const {
  Reference r;
  r.kind = question.kind;
  r.question = question.question;
  r.expected = question.answer;
  r.depth = question.depth;
  r.is_question = true;
  r.expectation.accept = question.accept;
  r.expectation.n_options = question.n_options;
  r.expectation.is_thinking = !close_thought_.empty();
  r.expectation.instruction_word = word;
  r.query = question.query.empty() ? question.question : question.query;
  r.prompt = user_turn(question.question);
  if (question.n_options > 0) {
    r.max_answer_tokens = n_choice_tokens_;
    const std::string end_of_thought = close_thought_.empty() ? "" : close_thought_ + "\n\n";
    r.stub =
        engine_->tokenizer().encode(end_of_thought + "Answer:", {.add_special = false, .parse_special = true});
    add_letters(*engine_, question.n_options, r);
  } else {
    // Room for the expected words said differently and for a word that ends every reply.
    const auto n_gold = static_cast<int64_t>(encode_plain(*engine_, question.answer).size());
    r.max_answer_tokens = std::max(kMaxAnswerTokens, 2 * n_gold + 8);
    if (!close_thought_.empty()) r.max_answer_tokens = std::max(r.max_answer_tokens, n_choice_tokens_);
  }
  return r;
}

Result<Prompted> prompted_with(engine::Executor& executor, const SequenceCache& cache,
                               std::span<const Reference> references) {
  std::vector<std::span<const int32_t>> prompts;
  for (const Reference& r : references) prompts.emplace_back(r.prompt);
  return read_prompts(executor, cache, prompts);
}

Result<void> in_waves(const kv::BlockPool& pool, std::span<Reference> references,
                      const std::function<Result<void>(std::span<Reference>)>& ask) {
  if (references.empty()) return {};
  // Each has a fork for its prompt and answer, and up to three more that go on from the prompt.
  constexpr int64_t kForksEach = 4;
  size_t n_tokens = 0;
  for (const Reference& r : references)
    n_tokens = std::max(n_tokens, r.prompt.size() + r.forced.size() + static_cast<size_t>(r.max_answer_tokens));
  const auto width = static_cast<size_t>(
      std::max<int64_t>(1, kv::forks_that_fit(pool, static_cast<int64_t>(n_tokens)) / kForksEach));
  for (size_t begin = 0; begin < references.size(); begin += width)
    SH_RETURN_IF_ERROR(ask(references.subspan(begin, std::min(width, references.size() - begin))));
  return {};
}

Result<void> SubjectReader::ask_full(const Subject& subject, std::span<Reference> references) const {
  engine::Executor& executor = engine_->executor();
  SH_ASSIGN(Prompted prompted, prompted_with(executor, subject.cache, references));

  // Expected answers may or may not begin with a space, depending on the template: the likelier form is scored.
  struct Form {
    size_t reference;
    std::vector<int32_t> ids;
    double nll = 0;
  };
  std::vector<Form> forms;
  for (size_t i = 0; i < references.size(); ++i)
    for (const char* lead : {" ", ""})
      if (references[i].expectation.n_options == 0)
        forms.push_back({i, encode_plain(*engine_, lead + references[i].expected)});
  std::vector<Forced> forced;
  for (Form& form : forms)
    forced.push_back({form.reference, form.ids, [&form](int64_t at, std::span<const float> logits) {
                        form.nll += negative_log_likelihood(logits, form.ids[static_cast<size_t>(at)]) /
                                    static_cast<double>(form.ids.size());
                      }});
  SH_RETURN_IF_ERROR(force(executor, prompted, forced));
  std::vector<double> best(references.size());
  for (const Form& form : forms) {
    Reference& r = references[form.reference];
    if (!r.gold.empty() && best[form.reference] <= form.nll) continue;
    r.gold = form.ids;
    best[form.reference] = form.nll;
  }

  std::vector<size_t> which;
  std::vector<AnswerLimits> limits;
  for (size_t i = 0; i < references.size(); ++i) {
    const Reference& r = references[i];
    const bool is_long = r.max_answer_tokens > kMaxComparedTokens && r.expectation.n_options > 0;
    which.push_back(i);
    limits.push_back({r.max_answer_tokens, is_long ? kMaxComparedTokens : r.max_answer_tokens});
  }
  SH_ASSIGN(std::vector<Answer> answers, answer_greedily(executor, prompted, which, limits));
  for (size_t i = 0; i < references.size(); ++i) {
    Reference& r = references[i];
    Answer& answer = answers[i];
    r.full = grade(r.expectation, answer_text(*engine_, answer.ids, r.has_thoughts()));
    r.is_forced_whole = answer.logits.rows == static_cast<int64_t>(answer.ids.size());
    answer.ids.resize(static_cast<size_t>(answer.logits.rows));
    r.forced = std::move(answer.ids);
    r.full_logits = std::move(answer.logits);
  }
  return {};
}

Result<Subject> SubjectReader::read(const std::string& context, const RecallDocument& document,
                                    std::vector<int32_t> ids) const {
  Subject subject{.context = context,
                  .id = document.id,
                  .text = document.context,
                  .ids = std::move(ids),
                  .cache = SequenceCache(engine_->block_pool()),
                  .none = none_->fork()};
  const Stopwatch watch;
  SH_RETURN_IF_ERROR(engine_->prefill(subject.cache, subject.ids));
  subject.prefill_seconds = watch.seconds();
  for (const RecallQuestion& question : document.questions)
    subject.references.push_back(question_reference(question, document.instruction_word));
  SH_RETURN_IF_ERROR(in_waves(engine_->block_pool(), subject.references,
                              [&](std::span<Reference> references) { return ask_full(subject, references); }));
  SH_RETURN_IF_ERROR(measure_without_context(*engine_, subject));
  return subject;
}

Result<Subject> read_passage(Engine& engine, const std::string& context, const std::string& id,
                             std::vector<int32_t> ids, std::vector<int32_t> continuation) {
  SH_CHECK(ids.size() >= 2 && !continuation.empty(), "a passage has a context and a continuation");
  Subject subject{.context = context,
                  .id = id,
                  .ids = std::move(ids),
                  .cache = SequenceCache(engine.block_pool()),
                  .none = SequenceCache(engine.block_pool())};
  // The last token of the context is fed after a compaction, so that every predicted token is the compacted
  // cache's.
  Reference r;
  r.kind = "prose";
  r.prompt = {subject.ids.back()};
  r.forced = std::move(continuation);
  subject.ids.pop_back();
  const Stopwatch watch;
  SH_RETURN_IF_ERROR(engine.prefill(subject.cache, subject.ids));
  subject.prefill_seconds = watch.seconds();
  SH_RETURN_IF_ERROR(engine.prefill(subject.none, std::span(subject.ids).first(1)));

  r.full_logits = Mat<float>(static_cast<int64_t>(r.forced.size()), engine.model().info().n_vocab);
  SH_ASSIGN(const Prompted prompted, prompted_with(engine.executor(), subject.cache, std::span(&r, 1)));
  const Forced forced{0, r.forced, [&r](int64_t at, std::span<const float> logits) {
                        std::copy(logits.begin(), logits.end(), r.full_logits.row(at));
                      }};
  SH_RETURN_IF_ERROR(force(engine.executor(), prompted, std::span(&forced, 1)));
  subject.references.push_back(std::move(r));
  SH_RETURN_IF_ERROR(measure_without_context(engine, subject));
  return subject;
}

}  // namespace sh::tools
