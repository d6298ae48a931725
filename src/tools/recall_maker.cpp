// SPDX-License-Identifier: MIT
#include "tools/recall_maker.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <optional>

namespace sh::tools {

namespace {

constexpr int64_t kLeastUnits = 10;  // gaps at 0, 10, ..., 100 %
constexpr double kLeastShare = 0.95;
// Text with hardly any sentence ends: the mean unit in bytes, and how finely it is cut where coarser cuts leave
// too few places for facts.
constexpr size_t kHardlyAnyEnds = kLongestUnit / 2;
constexpr size_t kLongestUnits[] = {kLongestUnit, 150, 40};
// A sentence to quote: about 30 tokens. One to find it by: long enough to be known again.
constexpr size_t kQuoteLeast = 70, kQuoteMost = 180, kCueLeast = 30, kCueMost = 200;

// ---- one document ----

struct Sentence {
  std::string text;
  std::string item;  // of count and list_all: what this one adds
};
struct Fact {
  const RecallPattern* pattern = nullptr;
  std::vector<Sentence> sentences;
  std::map<std::string, std::string> values;
};
/// A sentence and where it stands.
struct Placed {
  Sentence sentence;
  size_t fact = 0;
  size_t offset = 0;  // in the context; known once it is written
};

/// What one document takes of the user's text: whole units, and pieces of one more.
struct Slice {
  size_t begin = 0, n_units = 0;
  int64_t n_tail_pieces = 0;
};

struct Draft {
  std::string context;
  std::vector<Json> questions;
  Json instruction;
  int64_t n_tokens = 0;
};

template <typename T>
void shuffle(std::vector<T>& items, Rng& rng) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[rng.next_below(i)]);
}

class DocumentMaker {
 public:
  DocumentMaker(const RecallSpec& spec, const RecallPatterns& patterns, const std::vector<TextUnit>& units,
                const std::vector<int64_t>& tokens_before, std::string_view all_text)
      : spec_(spec), patterns_(patterns), units_(units), tokens_before_(tokens_before), all_text_(all_text) {}

  Result<Json> make(int64_t document) {
    document_ = document;
    Rng rng(spec_.seed, stream(0));
    SlotValues values(patterns_, all_text_, rng);
    facts_.clear();
    quote_patterns_.clear();
    instruction_.reset();
    if (spec_.has_instruction && !patterns_.instruction.empty()) {
      SH_ASSIGN(const std::string word, values.draw("word"));
      instruction_ = std::pair(word, fill_slots(patterns_.instruction, {{"word", word}}));
    }
    SH_RETURN_IF_ERROR(make_facts(values, rng));
    SH_ASSIGN(const Draft draft, fill());
    if (draft.questions.empty())
      return Error{
          ErrorKind::invalid_argument,
          fmt::format("document {} gets no question: its text has no two neighbouring sentences of {} to {} "
                      "and {} to {} bytes to quote; give other text or ask for other --kinds",
                      document + 1, kCueLeast, kCueMost, kQuoteLeast, kQuoteMost)};
    Json out = {{"id", fmt::format("{}-{:03}", spec_.label, document)},
                {"n_tokens", draft.n_tokens},
                {"context", draft.context}};
    if (!draft.instruction.is_null()) out["instruction"] = draft.instruction;
    out["questions"] = draft.questions;
    return out;
  }

 private:
  uint64_t stream(uint64_t purpose) const { return static_cast<uint64_t>(document_) * 4 + purpose; }

  /// Kinds in turn, over documents too, so that few facts a document still give all kinds.
  Result<void> make_facts(SlotValues& values, Rng& rng) {
    std::vector<std::vector<const RecallPattern*>> by_kind;
    for (const std::string& kind : recall_kinds()) {
      if (!spec_.kinds.empty() && std::find(spec_.kinds.begin(), spec_.kinds.end(), kind) == spec_.kinds.end())
        continue;
      std::vector<const RecallPattern*> found;
      for (const RecallPattern& pattern : patterns_.patterns)
        if (pattern.kind == kind) found.push_back(&pattern);
      if (!found.empty()) by_kind.push_back(std::move(found));
    }
    for (int64_t i = 0; i < spec_.n_facts; ++i) {
      const auto& choices = by_kind[static_cast<size_t>(document_ * spec_.n_facts + i) % by_kind.size()];
      const RecallPattern& pattern = *choices[rng.next_below(choices.size())];
      if (pattern.kind == "verbatim") {
        quote_patterns_.push_back(&pattern);
        continue;
      }
      SH_RETURN_IF_ERROR(make_fact(pattern, values, rng));
    }
    return {};
  }

  Result<void> make_fact(const RecallPattern& pattern, SlotValues& values, Rng& rng) {
    Fact fact{.pattern = &pattern};
    std::vector<std::string> templates = pattern.statements;
    templates.push_back(pattern.question);
    templates.insert(templates.end(), pattern.accept.begin(), pattern.accept.end());
    for (const std::string& text : templates)
      for (const std::string& slot : slots_of(text)) {
        const bool is_special = slot == "item" || slot == "count" || slot == "count_word" || slot == "all";
        if (fact.values.contains(slot) || (pattern.repeat_max > 0 && is_special)) continue;
        SH_ASSIGN(fact.values[slot], values.draw(slot_type(slot)));
      }
    if (pattern.repeat_max == 0) {
      for (const std::string& text : pattern.statements)
        fact.sentences.push_back({fill_slots(text, fact.values), ""});
    } else {
      static constexpr std::array<const char*, 13> kWords = {"zero", "one",    "two",   "three", "four",
                                                             "five", "six",    "seven", "eight", "nine",
                                                             "ten",  "eleven", "twelve"};
      const int64_t n =
          pattern.repeat_min +
          static_cast<int64_t>(rng.next_below(static_cast<uint64_t>(pattern.repeat_max - pattern.repeat_min + 1)));
      for (int64_t i = 0; i < n; ++i) {
        SH_ASSIGN(fact.values["item"], values.draw(pattern.item));
        fact.sentences.push_back({fill_slots(pattern.statements[0], fact.values), fact.values["item"]});
      }
      fact.values["count"] = std::to_string(n);
      fact.values["count_word"] = kWords[static_cast<size_t>(n)];
    }
    facts_.push_back(std::move(fact));
    return {};
  }

  Error text_too_short(int64_t n_needed) const {
    return Error{ErrorKind::invalid_argument,
                 fmt::format("--text: a document of {} tokens with {} facts takes about {} tokens of text, and "
                             "the files hold {}; give more text or ask for fewer --tokens",
                             spec_.n_tokens, spec_.n_facts, n_needed, tokens_before_.back())};
  }

  /// Takes as much of the text as the length leaves beside the facts.
  Result<Draft> fill() {
    std::string all_facts = instruction_ ? instruction_->second + " " : "";
    for (const Fact& fact : facts_)
      for (const Sentence& sentence : fact.sentences) all_facts += sentence.text + " ";
    const int64_t n_fact_tokens = spec_.count_tokens(all_facts);
    int64_t n_text = spec_.n_tokens - n_fact_tokens;
    const int64_t n_all = tokens_before_.back();
    if (static_cast<double>(n_all) < kLeastShare * static_cast<double>(n_text)) return text_too_short(n_text);
    const size_t begin = first_unit(n_text);
    std::optional<Draft> best;
    for (int attempt = 0; attempt < 12; ++attempt) {
      const Slice slice = slice_of(begin, n_text);
      if (static_cast<int64_t>(slice.n_units) < kLeastUnits)
        return Error{
            ErrorKind::invalid_argument,
            fmt::format("{} tokens a document: {} facts take about {} of them and leave {} sentences of text, but "
                        "depths from 0 to 100 % need {}; ask for fewer --facts or more --tokens",
                        spec_.n_tokens, spec_.n_facts, n_fact_tokens, slice.n_units, kLeastUnits)};
      Draft draft = write(slice);
      const int64_t missing = spec_.n_tokens - draft.n_tokens;
      if (missing >= 0 && (!best || draft.n_tokens > best->n_tokens)) best = std::move(draft);
      if (missing >= 0 && missing <= spec_.n_tokens / 100) break;
      n_text += missing > 0 ? (missing + 1) / 2 : missing;  // comes up to the length from below
    }
    if (!best || static_cast<double>(best->n_tokens) < kLeastShare * static_cast<double>(spec_.n_tokens))
      return text_too_short(n_text);
    return std::move(*best);
  }

  /// Documents begin at places spread over all of the text.
  size_t first_unit(int64_t n_text) const {
    const int64_t n_all = tokens_before_.back(), n_room = std::max<int64_t>(0, n_all - n_text - n_text / 20);
    Rng rng(spec_.seed, stream(1));
    const double share =
        (static_cast<double>(document_) + rng.next_unit()) / static_cast<double>(spec_.n_documents);
    const auto target = static_cast<int64_t>(share * static_cast<double>(n_room));
    const auto found =
        std::upper_bound(tokens_before_.begin(), tokens_before_.end(), target) - tokens_before_.begin() - 1;
    const size_t unit = std::min(static_cast<size_t>(found), units_.size() - 1);
    // Back to the start of a paragraph, if one is near.
    for (size_t back = 0; back < 8 && back < unit; ++back)
      if (units_[unit - back - 1].separator.find('\n') != std::string::npos) return unit - back;
    return unit;
  }

  Slice slice_of(size_t begin, int64_t n_text) const {
    const int64_t end_tokens = tokens_before_[begin] + std::max<int64_t>(0, n_text);
    const auto end =
        static_cast<size_t>(std::upper_bound(tokens_before_.begin(), tokens_before_.end(), end_tokens) -
                            tokens_before_.begin()) -
        1;
    Slice slice{.begin = begin, .n_units = std::max(end, begin) - begin};
    if (end >= units_.size() || end < begin) return slice;
    const int64_t n_unit = std::max<int64_t>(1, tokens_before_[end + 1] - tokens_before_[end]);
    slice.n_tail_pieces = count_pieces(units_[end].text) * (end_tokens - tokens_before_[end]) / n_unit;
    return slice;
  }

  /// Pairs (cue, quotation) of neighbouring sentences, at depths that the seed chooses.
  std::vector<size_t> choose_quotes(const Slice& slice, Rng& rng) const {
    std::vector<size_t> cues;
    if (quote_patterns_.empty()) return cues;
    std::map<std::string_view, int> n_seen;
    for (size_t i = 0; i < slice.n_units; ++i) ++n_seen[units_[slice.begin + i].text];
    for (size_t i = 0; i + 1 < slice.n_units; ++i) {
      const TextUnit &cue = units_[slice.begin + i], &quote = units_[slice.begin + i + 1];
      const bool has_length = cue.text.size() >= kCueLeast && cue.text.size() <= kCueMost &&
                              quote.text.size() >= kQuoteLeast && quote.text.size() <= kQuoteMost;
      const bool is_one_line =
          cue.text.find('\n') == std::string::npos && quote.text.find('\n') == std::string::npos;
      if (has_length && (cue.separator == " " || cue.separator.empty()) && is_one_line && n_seen[cue.text] == 1 &&
          n_seen[quote.text] == 1)
        cues.push_back(i);
    }
    shuffle(cues, rng);
    std::vector<size_t> chosen;
    for (const size_t cue : cues) {
      const bool touches = std::any_of(chosen.begin(), chosen.end(),
                                       [&](size_t other) { return cue <= other + 1 && other <= cue + 1; });
      if (!touches && chosen.size() < quote_patterns_.size()) chosen.push_back(cue);
    }
    std::sort(chosen.begin(), chosen.end());
    return chosen;
  }

  /// The facts' sentences in the order in which they stand: anyhow, but an update after what it overrides.
  std::vector<Placed> ordered_sentences(Rng& rng) const {
    std::vector<size_t> order;
    for (size_t i = 0; i < facts_.size(); ++i) order.insert(order.end(), facts_[i].sentences.size(), i);
    shuffle(order, rng);
    std::vector<std::vector<Sentence>> left;
    for (const Fact& fact : facts_) {
      left.push_back(fact.sentences);
      if (fact.pattern->kind != "update") shuffle(left.back(), rng);
    }
    std::vector<Placed> placed;
    std::vector<size_t> n_taken(facts_.size(), 0);
    for (const size_t fact : order) placed.push_back({left[fact][n_taken[fact]++], fact});
    return placed;
  }

  Draft write(const Slice& slice) const {
    Rng rng(spec_.seed, stream(2));
    const std::vector<size_t> cues = choose_quotes(slice, rng);
    std::vector<Placed> placed = ordered_sentences(rng);
    std::vector<size_t> gaps;  // gap g is before unit g; the last one is after the whole units
    for (size_t gap = 0; gap <= slice.n_units; ++gap)
      if (gap == 0 || !std::binary_search(cues.begin(), cues.end(), gap - 1)) gaps.push_back(gap);
    const auto gap_of = [&](size_t i) {
      return gaps[placed.size() < 2 ? gaps.size() / 2 : i * (gaps.size() - 1) / (placed.size() - 1)];
    };

    Draft draft;
    std::string& out = draft.context;
    std::vector<size_t> unit_offsets;
    size_t next = 0;
    bool is_after_fact = false;
    const auto put_fact = [&](const std::string& sentence, const char* end) {
      if (wants_space(out, sentence)) out += ' ';
      const size_t offset = out.size();
      out += sentence + end;
      is_after_fact = true;
      return offset;
    };
    const auto put_text = [&](const std::string& text) {
      if (is_after_fact && wants_space(out, text)) out += ' ';
      is_after_fact = false;
      const size_t offset = out.size();
      out += text;
      return offset;
    };
    const auto put_facts = [&](size_t gap) {
      const bool on_own_lines = (gap > 0 && units_[slice.begin + gap - 1].separator == "\n") ||
                                (gap < slice.n_units && units_[slice.begin + gap].separator == "\n");
      for (; next < placed.size() && gap_of(next) == gap; ++next)
        placed[next].offset = put_fact(placed[next].sentence.text, on_own_lines ? "\n" : "");
    };
    size_t instruction_offset = 0;
    for (size_t i = 0; i < slice.n_units; ++i) {
      put_facts(i);
      if (i == 0 && instruction_) instruction_offset = put_fact(instruction_->second, "");
      unit_offsets.push_back(put_text(units_[slice.begin + i].text));
      out += units_[slice.begin + i].separator;
    }
    put_facts(slice.n_units);
    if (slice.n_tail_pieces > 0)
      put_text(first_pieces(units_[slice.begin + slice.n_units].text, slice.n_tail_pieces));
    while (!out.empty() && is_space(out.back())) out.pop_back();

    draft.n_tokens = spec_.count_tokens(out);
    if (instruction_)
      draft.instruction = {{"kind", "standing_instruction"},
                           {"word", instruction_->first},
                           {"text", instruction_->second},
                           {"depth", depth(instruction_offset, out)}};
    for (size_t i = 0; i < facts_.size(); ++i) draft.questions.push_back(question_of(i, placed, out));
    for (size_t i = 0; i < cues.size(); ++i) {
      const std::string &cue = units_[slice.begin + cues[i]].text, &quote = units_[slice.begin + cues[i] + 1].text;
      draft.questions.push_back({{"q", fill_slots(quote_patterns_[i]->question, {{"sentence", cue}})},
                                 {"answer", quote},
                                 {"kind", "verbatim"},
                                 {"depth", depth(unit_offsets[cues[i] + 1], out)}});
    }
    return draft;
  }

  static double depth(size_t offset, const std::string& context) {
    return std::round(1e4 * static_cast<double>(offset) / static_cast<double>(context.size())) / 1e4;
  }

  Json question_of(size_t index, const std::vector<Placed>& placed, const std::string& context) const {
    const Fact& fact = facts_[index];
    std::map<std::string, std::string> values = fact.values;
    std::vector<std::string> items;  // in the order in which they stand
    std::optional<size_t> offset;
    for (const Placed& p : placed) {
      if (p.fact != index) continue;
      if (!p.sentence.item.empty())
        items.push_back(p.sentence.item);
      else if (fact.pattern->kind != "absent" &&
               p.sentence.text.find(fill_slots(fact.pattern->answer, values)) != std::string::npos)
        offset = p.offset;
    }
    values["all"] = fmt::format("{}", fmt::join(items, ", "));
    Json out = {{"q", fill_slots(fact.pattern->question, values) + patterns_.suffix},
                {"answer", fill_slots(fact.pattern->answer, values)},
                {"kind", fact.pattern->kind}};
    if (offset) out["depth"] = depth(*offset, context);
    if (fact.pattern->kind == "list_all") out["parts"] = items;
    for (const std::string& other : fact.pattern->accept) out["accept"].push_back(fill_slots(other, values));
    return out;
  }

  const RecallSpec& spec_;
  const RecallPatterns& patterns_;
  const std::vector<TextUnit>& units_;
  const std::vector<int64_t>& tokens_before_;
  std::string_view all_text_;
  int64_t document_ = 0;
  std::vector<Fact> facts_;
  std::vector<const RecallPattern*> quote_patterns_;
  std::optional<std::pair<std::string, std::string>> instruction_;  // word, sentence
};

Result<void> check_spec(const RecallSpec& spec, const RecallPatterns& patterns) {
  for (const std::string& kind : spec.kinds) {
    const bool is_there = std::any_of(patterns.patterns.begin(), patterns.patterns.end(),
                                      [&](const RecallPattern& pattern) { return pattern.kind == kind; });
    if (!is_there)
      return Error{ErrorKind::invalid_argument,
                   fmt::format("--kinds: no pattern is of kind '{}'; the kinds are {}", kind,
                               fmt::join(recall_kinds(), ", "))};
  }
  return {};
}

}  // namespace

namespace {

/// Documents of the spec from texts that are cut into units of `longest` bytes at most; `mean_unit` is how long
/// these are.
Result<std::vector<Json>> make_documents(const RecallSpec& spec, const RecallPatterns& patterns, size_t longest,
                                         size_t& mean_unit) {
  std::vector<TextUnit> units;
  std::string all_text;
  for (const std::string& text : spec.texts)
    for (TextUnit& unit : split_text(text, longest)) {
      all_text += unit.text + unit.separator;
      units.push_back(std::move(unit));
    }
  if (units.empty()) return Error{ErrorKind::invalid_argument, "--text: the files hold nothing but white space"};
  mean_unit = all_text.size() / units.size();
  std::vector<int64_t> tokens_before = {0};
  for (const TextUnit& unit : units)
    tokens_before.push_back(tokens_before.back() + spec.count_tokens(unit.text + unit.separator));

  DocumentMaker maker(spec, patterns, units, tokens_before, all_text);
  std::vector<Json> documents;
  for (int64_t i = 0; i < spec.n_documents; ++i) {
    SH_ASSIGN(Json document, maker.make(i));
    documents.push_back(std::move(document));
  }
  return documents;
}

}  // namespace

Result<std::vector<Json>> make_recall(const RecallSpec& spec, const RecallPatterns& patterns) {
  SH_RETURN_IF_ERROR(check_spec(spec, patterns));
  size_t mean_unit = 0;
  auto made = make_documents(spec, patterns, kLongestUnits[0], mean_unit);
  // A text of sentences is not cut amidst them: there a finer cut would hide what is wrong.
  const bool has_ends = mean_unit < kHardlyAnyEnds;
  for (size_t i = 1; i < std::size(kLongestUnits) && !made.ok() && !has_ends; ++i) {
    auto finer = make_documents(spec, patterns, kLongestUnits[i], mean_unit);
    if (finer.ok()) return finer;
  }
  return made;
}

}  // namespace sh::tools
