// SPDX-License-Identifier: MIT
// One long conversation in a small cache: a text of many times the cache's rows is read with automatic compaction,
// and questions about its first part are asked again and again, next to a cache that holds everything.
//   long_bench MODEL.gguf RECALL.jsonl TEXT.txt METHOD[,METHOD...] N_ROWS N_LOGICAL [RATIO=2] [THRESHOLD=0.9] [REBASE=0]
// What is read is the first document of RECALL.jsonl and then TEXT.txt, from its front again when it ends; the
// questions are those of the document. Prints one JSON object a checkpoint and method; KL is of the full cache's own
// answers, teacher-forced. METHOD "full" holds everything; it comes first, and by itself unless N_LOGICAL is above
// 32768. How far a method is goes to stderr every 4096 tokens.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "base/machine.h"
#include "base/mapped_file.h"
#include "engine/conversation.h"
#include "engine/engine.h"
#include "engine/logit_compare.h"
#include "engine/reference_steps.h"
#include "program.h"

namespace {

using namespace sh;
using namespace sh::bench;
using engine::Conversation;
using engine::Engine;

constexpr int64_t kLongestFull = 32768;
constexpr int64_t kPiece = 64;           // tokens read between two looks at the cache
constexpr int64_t kProgress = 4096;      // tokens between two lines on stderr
constexpr int64_t kMaxAnswerTokens = 16;

struct Question {
  std::vector<int32_t> prompt;
  std::string answer;
};
struct Material {
  std::vector<int32_t> ids;  // N_LOGICAL tokens, as one system message that is still open
  std::vector<Question> questions;
  int64_t n_first = 0;  // tokens of the first document
};

std::vector<int32_t> plain(const Engine& engine, const std::string& text) {
  return engine.tokenizer().encode(text, {.add_special = false, .parse_special = false});
}

/// What stands before and after the content of a system message.
std::pair<std::string, std::string> around_system(const Engine& engine) {
  const std::string marker = "The content of the message.";
  const std::string text =
      need(engine.render_messages(Json::array({{{"role", "system"}, {"content", marker}}}), false));
  const size_t at = text.find(marker);
  if (at == std::string::npos) fail("the chat template does not show the content of a system message");
  return {text.substr(0, at), text.substr(at + marker.size())};
}

Material read_material(const Engine& engine, const std::string& path, const std::string& text_path,
                       int64_t n_logical) {
  const auto [before, after] = around_system(engine);
  const engine::TurnTokens turn = need(engine::turn_tokens(engine));
  Material material;
  material.ids = engine::encode_text(engine, before);
  std::ifstream file(path);
  if (!file) fail(fmt::format("'{}' cannot be read", path));
  std::string line;
  std::getline(file, line);
  const Json document = Json::parse(line);
  const std::vector<int32_t> first = plain(engine, document.at("context").get<std::string>() + "\n\n");
  material.ids.insert(material.ids.end(), first.begin(), first.end());
  material.n_first = static_cast<int64_t>(material.ids.size());
  for (const Json& q : document.at("questions")) {
    Question question{.prompt = engine::encode_text(engine, after), .answer = q.at("answer").get<std::string>()};
    question.prompt.insert(question.prompt.end(), turn.user_open.begin(), turn.user_open.end());
    const std::vector<int32_t> words = plain(engine, q.at("q").get<std::string>());
    question.prompt.insert(question.prompt.end(), words.begin(), words.end());
    question.prompt.insert(question.prompt.end(), turn.user_close.begin(), turn.user_close.end());
    material.questions.push_back(std::move(question));
  }
  const std::vector<int32_t> text = plain(engine, need(read_file(text_path)));
  if (text.empty()) fail(fmt::format("'{}' is empty", text_path));
  while (static_cast<int64_t>(material.ids.size()) < n_logical)
    material.ids.insert(material.ids.end(), text.begin(), text.end());
  material.ids.resize(static_cast<size_t>(n_logical));
  return material;
}

/// An answer of the full cache: its tokens and the logits that chose them.
struct Reference {
  std::vector<int32_t> ids;
  Mat<float> logits;
};
int32_t argmax(const float* logits, int64_t n) {
  return static_cast<int32_t>(std::max_element(logits, logits + n) - logits);
}

Reference answer_freely(Engine& engine, const kv::SequenceCache& cache, const Question& question, std::string& text) {
  kv::SequenceCache fork = cache.fork();
  Reference reference;
  Mat<float> last = need(engine.prefill(fork, question.prompt));
  std::vector<float> rows;
  for (int64_t i = 0; i < kMaxAnswerTokens; ++i) {
    const int32_t id = argmax(last.row(0), last.cols);
    rows.insert(rows.end(), last.data.begin(), last.data.end());
    reference.ids.push_back(id);
    if (engine.tokenizer().is_end_of_generation(id)) break;
    text += engine.tokenizer().piece(id, false);
    last = need(engine.prefill(fork, std::span(&id, 1)));
  }
  reference.logits = Mat<float>(static_cast<int64_t>(reference.ids.size()), last.cols);
  std::copy(rows.begin(), rows.end(), reference.logits.data.begin());
  return reference;
}

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

/// Asks everything at one point of the conversation. With references (of the full cache, there) also the KL.
struct Checkpoint {
  int64_t n_right = 0;
  std::vector<double> kls;  // a question
  std::vector<Reference> references;
};
Checkpoint ask_all(Engine& engine, const kv::SequenceCache& cache, const std::vector<Question>& questions,
                   const std::vector<Reference>* references) {
  Checkpoint checkpoint;
  for (size_t q = 0; q < questions.size(); ++q) {
    std::string text;
    checkpoint.references.push_back(answer_freely(engine, cache, questions[q], text));
    checkpoint.n_right += trimmed(text) == questions[q].answer ? 1 : 0;
    if (references == nullptr) continue;
    const Reference& full = (*references)[q];
    std::vector<int32_t> ids = questions[q].prompt;
    ids.insert(ids.end(), full.ids.begin(), full.ids.end() - 1);
    kv::SequenceCache fork = cache.fork();
    const Mat<float> logits = need(engine.prefill(fork, ids, {.all_logits = true}));
    const int64_t n = full.logits.rows;
    double kl = 0;
    for (int64_t i = 0; i < n; ++i) {
      const auto width = static_cast<size_t>(full.logits.cols);
      kl += engine::compare_logits({full.logits.row(i), width}, {logits.row(logits.rows - n + i), width},
                                   full.ids[static_cast<size_t>(i)])
                .kl;
    }
    checkpoint.kls.push_back(kl / static_cast<double>(n));
  }
  return checkpoint;
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? NAN : sum / static_cast<double>(values.size());
}

Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

}  // namespace

int main(int argc, char** argv) {
  if (argc < 7) {
    fmt::print(stderr, "usage: long_bench MODEL.gguf RECALL.jsonl TEXT.txt METHOD[,METHOD...] N_ROWS N_LOGICAL [RATIO] "
                       "[THRESHOLD] [REBASE]\n");
    return 1;
  }
  const auto n_rows = number_argument<int64_t>("N_ROWS", argv[5], 64);
  const auto n_logical = number_argument<int64_t>("N_LOGICAL", argv[6], 64);
  const double ratio = argc > 7 ? number_argument("RATIO", argv[7], 1.0) : 2;
  const double threshold = argc > 8 ? number_argument("THRESHOLD", argv[8], 0.0) : 0.9;
  const bool rebases = argc > 9 && number_argument("REBASE", argv[9], 0) != 0;
  const int64_t n_between = std::max<int64_t>(kPiece, n_rows / 2 / kPiece * kPiece);

  std::vector<std::vector<Reference>> references;  // a checkpoint
  const auto run = [&](const std::string& label, engine::EngineOptions options) {
    const auto engine = need(Engine::open(options));
    const Material material = read_material(*engine, argv[2], argv[3], n_logical);
    Conversation conversation(*engine, false);
    const Stopwatch watch;
    double compaction_seconds = 0;
    for (int64_t at = 0, i = 0; at < n_logical; at += kPiece) {
      const auto n = static_cast<size_t>(std::min(kPiece, n_logical - at));
      if (conversation.wants_compaction() || (label != "full" && conversation.rows_left() < kPiece)) {
        const Stopwatch compaction_watch;
        need(conversation.compact_automatically({}, nullptr));
        compaction_seconds += compaction_watch.seconds();
      }
      const auto read = conversation.append(std::span(material.ids).subspan(static_cast<size_t>(at), n), {});
      if (!read.ok()) fail(read.error().message);
      if ((at + kPiece) % kProgress == 0)
        fmt::print(stderr, "{}: {} of {} tokens, {:.0f} rows a head, {} compactions in {:.0f} s, {:.0f} s in all\n",
                   label, at + kPiece, n_logical, conversation.n_physical(), conversation.n_compactions(),
                   compaction_seconds, watch.seconds());
      const bool is_checkpoint = at + kPiece >= material.n_first &&
                                 ((at + kPiece) % n_between == 0 || at + kPiece >= n_logical);
      if (!is_checkpoint) continue;
      const auto* full = static_cast<size_t>(i) < references.size() && label != "full"
                             ? &references[static_cast<size_t>(i)]
                             : nullptr;
      Checkpoint checkpoint = ask_all(*engine, conversation.cache(), material.questions, full);
      if (label == "full") references.push_back(std::move(checkpoint.references));
      ++i;
      std::vector<double> sorted = checkpoint.kls;
      std::sort(sorted.begin(), sorted.end());
      const kv::CacheUsage usage = conversation.cache().usage();
      fmt::print("{}\n", dump_json(Json{{"method", label},
                                        {"n_rows", n_rows},
                                        {"ratio", ratio},
                                        {"rebase", rebases},
                                        {"logical", conversation.n_tokens()},
                                        {"next_pos", conversation.cache().next_pos().value},
                                        {"physical", usage.n_physical},
                                        {"bytes", usage.bytes},
                                        {"compactions", conversation.n_compactions()},
                                        {"right", checkpoint.n_right},
                                        {"questions", material.questions.size()},
                                        {"kl_mean", number(mean(checkpoint.kls))},
                                        {"kl_median", sorted.empty() ? Json(nullptr) : Json(sorted[sorted.size() / 2])},
                                        {"resident_bytes", resident_bytes()},
                                        {"compaction_seconds", compaction_seconds},
                                        {"seconds", watch.seconds()}}));
      std::fflush(stdout);
    }
  };
  const std::vector<std::string> methods = split(argv[4], ',');
  if (n_logical <= kLongestFull || std::find(methods.begin(), methods.end(), "full") != methods.end())
    run("full", {.model_path = argv[1], .n_ctx = n_logical + 256});
  for (const std::string& method : methods) {
    if (method == "full") continue;
    engine::EngineOptions options{.model_path = argv[1], .n_ctx = n_rows};
    options.compact_threshold = threshold;
    options.compact_ratio = ratio;
    options.compact_method = method;
    options.compact_rebase = rebases;
    run(method, options);
  }
  return 0;
}
