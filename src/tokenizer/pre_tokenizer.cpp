// SPDX-License-Identifier: MIT
#include "tokenizer/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

namespace sh::tokenizer {

namespace {

// Backtracking steps of one match. The patterns need one or two a character, so this allows words of several
// megabytes.
constexpr uint32_t kMatchLimit = 50'000'000;
constexpr uint32_t kHeapLimitKib = 64 * 1024;

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatch {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

struct Pattern {
  std::unique_ptr<pcre2_code, FreeCode> code;
  bool is_jit = false;
};

Result<Pattern> compile(std::string_view text) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  Pattern pattern;
  pattern.code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), PCRE2_UTF | PCRE2_UCP,
                                   &error, &offset, nullptr));
  if (pattern.code == nullptr) {
    PCRE2_UCHAR message[160];
    pcre2_get_error_message(error, message, sizeof message);
    return Error{ErrorKind::unsupported,
                 fmt::format("pre-tokenizer pattern refused by PCRE2 at offset {}: {}; pattern {}", offset,
                             reinterpret_cast<const char*>(message), text)};
  }
  pattern.is_jit = pcre2_jit_compile(pattern.code.get(), PCRE2_JIT_COMPLETE) == 0;
  return pattern;
}

}  // namespace

struct PreTokenizer::State {
  std::vector<Pattern> patterns;
  std::unique_ptr<pcre2_match_context, FreeContext> context;
};

PreTokenizer::PreTokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

Result<PreTokenizer> PreTokenizer::create(const PreTokenizerRule& rule) {
  auto state = std::make_unique<State>();
  state->context.reset(pcre2_match_context_create(nullptr));
  SH_CHECK(state->context != nullptr, "out of memory for a PCRE2 match context");
  pcre2_set_match_limit(state->context.get(), kMatchLimit);
  pcre2_set_heap_limit(state->context.get(), kHeapLimitKib);
  for (std::string_view text : rule.patterns) {
    SH_ASSIGN(Pattern pattern, compile(text));
    state->patterns.push_back(std::move(pattern));
  }
  return PreTokenizer(std::move(state));
}

namespace {

/// One match in `piece` from `from` on; false when there is none or a limit was reached.
bool find_match(const Pattern& pattern, pcre2_match_context* context, pcre2_match_data* data,
                std::string_view piece, size_t from) {
  const auto subject = reinterpret_cast<PCRE2_SPTR>(piece.data());
  int rc = PCRE2_ERROR_JIT_STACKLIMIT;
  if (pattern.is_jit)
    rc = pcre2_jit_match(pattern.code.get(), subject, piece.size(), from, PCRE2_NO_UTF_CHECK, data, context);
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
    rc = pcre2_match(pattern.code.get(), subject, piece.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data,
                     context);
  }
  return rc >= 0;  // 0: matched, with more groups than the one pair holds
}

}  // namespace

std::vector<size_t> PreTokenizer::split(std::string_view text) const {
  std::vector<size_t> ends;
  if (text.empty()) return ends;
  ends.push_back(text.size());
  // Only the whole match is read, so one pair is enough for any number of groups.
  const std::unique_ptr<pcre2_match_data, FreeMatch> data(pcre2_match_data_create(1, nullptr));
  SH_CHECK(data != nullptr, "out of memory for PCRE2 match data");
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
  std::vector<size_t> finer;
  for (const Pattern& pattern : state_->patterns) {
    finer.clear();
    size_t begin = 0;
    for (const size_t end : ends) {
      const std::string_view piece = text.substr(begin, end - begin);
      size_t done = 0;
      while (done < piece.size() && find_match(pattern, state_->context.get(), data.get(), piece, done)) {
        if (range[1] == range[0]) break;
        if (range[0] > done) finer.push_back(begin + range[0]);
        finer.push_back(begin + range[1]);
        done = range[1];
      }
      if (done < piece.size()) finer.push_back(end);
      begin = end;
    }
    ends.swap(finer);
  }
  return ends;
}

}  // namespace sh::tokenizer
