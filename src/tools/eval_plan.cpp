// SPDX-License-Identifier: MIT
#include "tools/eval_plan.h"

#include <fmt/format.h>

#include <set>

#include "base/log.h"
#include "base/mapped_file.h"
#include "tools/eval_qa.h"

namespace sh::tools {

namespace {

constexpr int64_t kProseContinuation = 256;
/// Tokens of the context that a question and its answer may take, beside a choice's own.
constexpr int64_t kQuestionRoom = 64, kChoiceRoom = 512;

class Planner {
 public:
  Planner(const engine::Engine& engine, const EvalOptions& options, const SubjectReader* reader)
      : engine_(engine), options_(options), reader_(reader) {}

  Result<std::vector<PlannedSubject>> run() {
    for (const std::string& path : options_.recall_files) {
      SH_ASSIGN(std::vector<RecallDocument> documents, read_recall(path, options_.n_documents));
      SH_RETURN_IF_ERROR(add_documents(label_of(path), std::move(documents), kQuestionRoom));
    }
    const int64_t choice_room = kChoiceRoom + options_.n_choice_tokens;
    for (const std::string& path : options_.quality_files) {
      SH_ASSIGN(std::vector<RecallDocument> documents, read_quality(path, options_.n_documents, options_.seed));
      SH_RETURN_IF_ERROR(add_documents(label_of(path), std::move(documents), choice_room));
    }
    for (const auto& [path, n_patients] : options_.longhealth_files) {
      SH_ASSIGN(std::vector<RecallDocument> documents,
                read_longhealth(path, n_patients, options_.n_documents, options_.seed));
      SH_RETURN_IF_ERROR(add_documents(longhealth_label(n_patients), std::move(documents), choice_room));
    }
    SH_RETURN_IF_ERROR(add_prose());
    if (subjects_.empty())
      return Error{
          ErrorKind::invalid_argument,
          fmt::format("nothing measured: no document or passage fits a context of {} tokens (-c sets it) and "
                      "the texts given",
                      options_.max_context_tokens)};
    return std::move(subjects_);
  }

 private:
  bool fits(size_t n_tokens, int64_t room) const {
    return static_cast<int64_t>(n_tokens) + room <= options_.max_context_tokens;
  }
  /// Documents are told apart by their ids in items and in paired differences: of a repeated id a new one is made.
  void add(PlannedSubject subject) {
    const std::string given = subject.document.id;
    for (int n = 2; !ids_.emplace(subject.context, subject.document.id).second; ++n)
      subject.document.id = fmt::format("{} ({})", given, n);
    if (subject.document.id != given)
      log_warning("{}: another document has the id '{}' too; {} is called '{}' in the result", subject.context,
                  given, subject.document.origin.empty() ? "this one" : "that of " + subject.document.origin,
                  subject.document.id);
    subject.is_first = subjects_.empty() || subjects_.back().context != subject.context;
    subjects_.push_back(std::move(subject));
  }

  Result<void> add_documents(const std::string& label, std::vector<RecallDocument> documents, int64_t room) {
    for (RecallDocument& document : documents) {
      SH_ASSIGN(std::vector<int32_t> ids, reader_->document_tokens(document.context));
      if (fits(ids.size(), room)) {
        add({.context = label, .document = std::move(document), .ids = std::move(ids)});
      } else {
        log_warning("{}: {} tokens and {} for a question do not fit the context of {}; left out (-c sets it)",
                    document.id, ids.size(), room, options_.max_context_tokens);
      }
    }
    return {};
  }

  /// Pieces are taken from the texts in turn, so that few pieces are spread over all of them.
  Result<void> add_prose() {
    struct Text {
      std::string path, name;
      std::vector<int32_t> tokens;
    };
    std::vector<Text> texts;
    for (const std::string& path : options_.prose_files) {
      SH_ASSIGN(const std::string text, read_file(path));
      texts.push_back({path, label_of(path), encode_plain(engine_, text)});
    }
    for (const int64_t n_context : texts.empty() ? std::vector<int64_t>() : options_.prose_contexts) {
      const std::string label = fmt::format("prose-{}", n_context);
      const int64_t n_piece = n_context + kProseContinuation;
      int64_t n_added = 0;
      for (int64_t piece = 0; n_added < options_.n_documents; ++piece) {
        const int64_t n_before = n_added;
        for (const auto& [path, name, tokens] : texts) {
          if ((piece + 1) * n_piece > static_cast<int64_t>(tokens.size()) || n_added == options_.n_documents ||
              !fits(static_cast<size_t>(n_piece), 0))
            continue;
          add(passage(label, fmt::format("{}-{}", name, piece), path, tokens.data() + piece * n_piece, n_context));
          ++n_added;
        }
        if (n_added == n_before) break;
      }
      if (n_added == 0)
        log_warning("{}: no text has {} tokens, or they do not fit the context of {}; left out", label, n_piece,
                    options_.max_context_tokens);
    }
    return {};
  }

  PlannedSubject passage(const std::string& label, const std::string& id, const std::string& path,
                         const int32_t* tokens, int64_t n_context) const {
    PlannedSubject subject{.context = label};
    subject.document.id = id;
    subject.document.origin = path;
    const int32_t bos = engine_.tokenizer().data().bos;
    if (bos != tokenizer::kNoToken) subject.ids.push_back(bos);
    subject.ids.insert(subject.ids.end(), tokens, tokens + n_context);
    subject.continuation.assign(tokens + n_context, tokens + n_context + kProseContinuation);
    return subject;
  }

  const engine::Engine& engine_;
  const EvalOptions& options_;
  const SubjectReader* reader_;
  std::vector<PlannedSubject> subjects_;
  std::set<std::pair<std::string, std::string>> ids_;  // contexts and documents
};

}  // namespace

Result<std::vector<PlannedSubject>> plan_subjects(const engine::Engine& engine, const EvalOptions& options,
                                                  const SubjectReader* reader) {
  return Planner(engine, options, reader).run();
}

EvalProgress::EvalProgress(const std::vector<PlannedSubject>& subjects, int64_t n_steps_each, bool is_shown)
    : subjects_(subjects), n_steps_each_(n_steps_each), is_shown_(is_shown) {
  for (const PlannedSubject& subject : subjects) total_ += static_cast<double>(subject.ids.size());
}

void EvalProgress::begin(size_t subject) {
  if (subject > 0) before_ += static_cast<double>(subjects_[subject - 1].ids.size());
  subject_ = subject;
  n_steps_ = 0;
  show();
  last_shown_ = watch_.seconds();
}

void EvalProgress::step() {
  constexpr double kSecondsBetweenLines = 15;
  ++n_steps_;
  if (watch_.seconds() - last_shown_ < kSecondsBetweenLines) return;
  show();
  last_shown_ = watch_.seconds();
}

void EvalProgress::show() const {
  if (!is_shown_) return;
  const double share = static_cast<double>(n_steps_) / static_cast<double>(n_steps_each_);
  const double done = (before_ + share * static_cast<double>(subjects_[subject_].ids.size())) / total_;
  const std::string left =
      done > 0 ? fmt::format(", about {:.0f} s left", watch_.seconds() * (1 - done) / done) : std::string();
  log_info("compact-eval: {}: {} of {} documents, {:.0f} % of this one, {:.0f} s{}", subjects_[subject_].context,
           subject_, subjects_.size(), 100 * share, watch_.seconds(), left);
}

}  // namespace sh::tools
