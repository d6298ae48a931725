// SPDX-License-Identifier: MIT
#include "tools/recall_patterns.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "base/json.h"

namespace sh::tools {

namespace {

constexpr std::string_view kDefaultPatterns =
#include "tools/recall_patterns.inl"
    ;

// ---- values ----

template <size_t N>
std::string_view pick(const std::array<std::string_view, N>& choices, Rng& rng) {
  return choices[rng.next_below(N)];
}

/// An invented word: no language's, but one that can be spoken.
std::string invented_word(Rng& rng, int n_syllables) {
  static constexpr std::array<std::string_view, 24> kOnsets = {"b",  "br", "d", "dr", "f", "fl", "g", "gr",
                                                               "h",  "j",  "k", "kr", "l", "m",  "n", "p",
                                                               "pr", "qu", "r", "s",  "t", "tr", "v", "z"};
  static constexpr std::array<std::string_view, 10> kVowels = {"a", "e", "i", "o", "u", "a", "e", "o", "ai", "y"};
  static constexpr std::array<std::string_view, 12> kCodas = {"n",  "r",  "l",  "s",  "m", "x",
                                                              "th", "nd", "lk", "rn", "",  "v"};
  std::string word;
  for (int i = 0; i < n_syllables; ++i) {
    word += pick(kOnsets, rng);
    word += pick(kVowels, rng);
    if (i + 1 == n_syllables || rng.next_below(3) == 0) word += pick(kCodas, rng);
  }
  return word;
}

std::string invented_name(Rng& rng, int n_syllables) {
  std::string word = invented_word(rng, n_syllables);
  word[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(word[0])));
  return word;
}

int64_t between(Rng& rng, int64_t low, int64_t high) {
  return low + static_cast<int64_t>(rng.next_below(static_cast<uint64_t>(high - low + 1)));
}

std::string measure(Rng& rng) {
  static constexpr std::array<std::string_view, 10> kUnits = {"kilograms", "millimetres", "kelvin",  "litres",
                                                              "volts",     "hectares",    "newtons", "seconds",
                                                              "lumens",    "pascals"};
  return fmt::format("{}.{} {}", between(rng, 11, 989), between(rng, 1, 9), pick(kUnits, rng));
}

std::string date(Rng& rng) {
  static constexpr std::array<std::string_view, 12> kMonths = {"January",   "February", "March",    "April",
                                                               "May",       "June",     "July",     "August",
                                                               "September", "October",  "November", "December"};
  return fmt::format("{} {} {}", between(rng, 1, 28), pick(kMonths, rng), between(rng, 2031, 2089));
}

std::string colour(Rng& rng) {
  static constexpr std::array<std::string_view, 14> kShades = {"ashen",   "burnt",  "chalky",   "dusky", "faded",
                                                               "frosted", "glassy", "matt",     "milky", "pearly",
                                                               "rusty",   "smoky",  "speckled", "waxy"};
  static constexpr std::array<std::string_view, 16> kHues = {
      "amber",   "azure",  "crimson", "cyan",    "emerald", "indigo",    "ivory", "lilac",
      "magenta", "maroon", "ochre",   "scarlet", "teal",    "turquoise", "umber", "violet"};
  return fmt::format("{} {}", pick(kShades, rng), pick(kHues, rng));
}

std::string path(Rng& rng) {
  static constexpr std::array<std::string_view, 6> kRoots = {"/srv", "/opt", "/var/lib", "/etc", "/home", "/mnt"};
  static constexpr std::array<std::string_view, 8> kEndings = {"toml", "conf", "csv", "key",
                                                               "log",  "yaml", "sql", "bin"};
  return fmt::format("{}/{}/{}_{}.{}", pick(kRoots, rng), invented_word(rng, 2), invented_word(rng, 2),
                     between(rng, 10, 99), pick(kEndings, rng));
}

std::string signature(Rng& rng) {
  static constexpr std::array<std::string_view, 7> kTypes = {"int32_t", "uint8_t", "double", "float",
                                                             "bool",    "size_t",  "char*"};
  return fmt::format("{} {}_{}({} {}, {} {})", pick(kTypes, rng), invented_word(rng, 1), invented_word(rng, 2),
                     pick(kTypes, rng), invented_word(rng, 1), pick(kTypes, rng), invented_word(rng, 2));
}

struct Generator {
  std::string_view type;
  std::string (*make)(Rng&);
};
constexpr Generator kGenerators[] = {
    {"person", [](Rng& rng) { return invented_name(rng, 2) + " " + invented_name(rng, 2); }},
    {"place", [](Rng& rng) { return invented_name(rng, 3); }},
    {"group", [](Rng& rng) { return invented_name(rng, 3); }},
    {"device", [](Rng& rng) { return fmt::format("{}-{}", invented_name(rng, 2), between(rng, 10, 99)); }},
    {"word", [](Rng& rng) { return invented_word(rng, 3); }},
    {"code", [](Rng& rng) { return fmt::format("{}", between(rng, 100000, 999999)); }},
    {"number", [](Rng& rng) { return fmt::format("{}", between(rng, 1201, 9899)); }},
    {"office",
     [](Rng& rng) {
       return fmt::format("{}-{}", static_cast<char>('A' + rng.next_below(26)), between(rng, 101, 989));
     }},
    {"date", date},
    {"measure", measure},
    {"colour", colour},
    {"path", path},
    {"signature", signature},
};

const Generator* find_generator(std::string_view type) {
  for (const Generator& generator : kGenerators)
    if (generator.type == type) return &generator;
  return nullptr;
}

// ---- templates ----

bool is_slot_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
}

/// Walks over a template: text(piece) for what is literal, slot(name) for what is not. "{{" and "}}" are braces.
/// Returns the offset of a brace that belongs to nothing, or npos.
template <typename OnText, typename OnSlot>
size_t walk_template(std::string_view text, OnText on_text, OnSlot on_slot) {
  for (size_t at = 0; at < text.size();) {
    const size_t brace = text.find_first_of("{}", at);
    on_text(text.substr(at, brace == std::string_view::npos ? brace : brace - at));
    if (brace == std::string_view::npos) break;
    if (brace + 1 < text.size() && text[brace + 1] == text[brace]) {
      on_text(text.substr(brace, 1));
      at = brace + 2;
      continue;
    }
    size_t end = brace + 1;
    while (end < text.size() && is_slot_char(text[end])) ++end;
    if (text[brace] == '}' || end == brace + 1 || end == text.size() || text[end] != '}') return brace;
    on_slot(text.substr(brace + 1, end - brace - 1));
    at = end + 1;
  }
  return std::string_view::npos;
}

// ---- reading ----

/// Reads one pattern file; messages carry the place.
class Reader {
 public:
  Reader(const Json& json, std::string where) : json_(json), where_(std::move(where)) {}

  Result<RecallPatterns> read() {
    if (!json_.is_object()) return bad("expected an object with \"patterns\", got {}", json_.type_name());
    for (const auto& [key, value] : json_.items())
      if (key != "patterns" && key != "lists" && key != "repeatable" && key != "suffix" && key != "instruction")
        return bad("unknown key \"{}\"; known are patterns, lists, repeatable, suffix, instruction", key);
    SH_RETURN_IF_ERROR(read_lists());
    SH_RETURN_IF_ERROR(read_text(json_, "suffix", out_.suffix));
    SH_RETURN_IF_ERROR(read_text(json_, "instruction", out_.instruction));
    if (!out_.instruction.empty()) {
      SH_RETURN_IF_ERROR(check_template(out_.instruction, {}));
      if (slots_of(out_.instruction) != std::vector<std::string>{"word"})
        return bad("\"instruction\" needs the slot {{word}} once and no other");
    }
    const auto patterns = json_.find("patterns");
    if (patterns == json_.end() || !patterns->is_array() || patterns->empty())
      return bad("expected a list of patterns under \"patterns\"");
    const std::string file = where_;
    for (size_t i = 0; i < patterns->size(); ++i) {
      where_ = fmt::format("{}: pattern {}", file, i + 1);
      SH_RETURN_IF_ERROR(read_pattern((*patterns)[i]));
    }
    return std::move(out_);
  }

 private:
  template <typename... Args>
  Error bad(fmt::format_string<Args...> format, Args&&... args) const {
    return Error{ErrorKind::invalid_argument, where_ + ": " + fmt::format(format, std::forward<Args>(args)...)};
  }

  Result<void> read_text(const Json& object, const char* key, std::string& out) const {
    const auto it = object.find(key);
    if (it == object.end()) return {};
    if (!it->is_string()) return bad("expected a string under \"{}\", got {}", key, it->type_name());
    out = it->get<std::string>();
    return {};
  }

  Result<std::vector<std::string>> strings(const Json& value, const std::string& key) const {
    if (!value.is_array()) return bad("expected a list of strings under \"{}\", got {}", key, value.type_name());
    std::vector<std::string> out;
    for (const Json& item : value) {
      if (!item.is_string() || item.get_ref<const std::string&>().empty())
        return bad("expected strings that are not empty under \"{}\"", key);
      out.push_back(item.get<std::string>());
    }
    return out;
  }

  Result<void> read_lists() {
    if (const auto lists = json_.find("lists"); lists != json_.end()) {
      if (!lists->is_object()) return bad("expected an object under \"lists\", got {}", lists->type_name());
      for (const auto& [name, values] : lists->items()) {
        const bool is_name = !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
          return (c >= 'a' && c <= 'z') || c == '_';
        });
        if (!is_name)
          return bad("the list \"{}\" cannot be a slot: its name needs small letters and _ only", name);
        SH_ASSIGN(out_.lists[name], strings(values, name));
        if (out_.lists[name].empty()) return bad("the list \"{}\" is empty", name);
      }
    }
    if (const auto repeatable = json_.find("repeatable"); repeatable != json_.end()) {
      SH_ASSIGN(const std::vector<std::string> names, strings(*repeatable, "repeatable"));
      for (const std::string& name : names) {
        if (!out_.lists.contains(name)) return bad("\"repeatable\" names \"{}\", which is not in \"lists\"", name);
        out_.repeatable.insert(name);
      }
    }
    return {};
  }

  bool is_type(const std::string& type) const {
    return out_.lists.contains(type) || find_generator(type) != nullptr;
  }

  Result<void> check_template(const std::string& text, const std::set<std::string>& special) const {
    std::string unknown;
    const size_t stray = walk_template(
        text, [](std::string_view) {},
        [&](std::string_view name) {
          if (unknown.empty() && !special.contains(std::string(name)) && !is_type(slot_type(name))) unknown = name;
        });
    if (stray != std::string_view::npos)
      return bad("stray brace at character {} of \"{}\"; write {{{{ or }}}} for a brace", stray + 1, text);
    if (unknown.empty()) return {};
    std::string known;
    for (const Generator& generator : kGenerators)
      known += fmt::format("{}{}", known.empty() ? "" : ", ", generator.type);
    for (const auto& [name, values] : out_.lists) known += ", " + name;
    for (const std::string& name : special) known += ", " + name;
    return bad("unknown slot {{{}}} in \"{}\"; known are {}", unknown, text, known);
  }

  /// Slots that the pattern has beside values, by its kind.
  static std::set<std::string> special_slots(const RecallPattern& pattern) {
    if (pattern.kind == "verbatim") return {"sentence", "next"};
    if (pattern.repeat_max > 0) return {"item", "count", "count_word", "all"};
    return {};
  }

  Result<void> read_repeat(const Json& object, RecallPattern& pattern) const {
    const bool is_needed = pattern.kind == "count" || pattern.kind == "list_all";
    const auto repeat = object.find("repeat");
    if (!is_needed) {
      if (repeat != object.end() || object.contains("item"))
        return bad("\"repeat\" and \"item\" are for the kinds count and list_all");
      return {};
    }
    const auto is_whole = [](const Json& n) {
      return n.is_number_integer() && n.get<int64_t>() >= 2 && n.get<int64_t>() <= 12;
    };
    if (repeat == object.end() || !repeat->is_array() || repeat->size() != 2 || !is_whole((*repeat)[0]) ||
        !is_whole((*repeat)[1]) || (*repeat)[0] > (*repeat)[1])
      return bad("{} needs \"repeat\": [least, most], from 2 to 12", pattern.kind);
    pattern.repeat_min = (*repeat)[0].get<int64_t>();
    pattern.repeat_max = (*repeat)[1].get<int64_t>();
    SH_RETURN_IF_ERROR(read_text(object, "item", pattern.item));
    if (!is_type(pattern.item)) return bad("\"item\" needs a slot type, got \"{}\"", pattern.item);
    if (out_.repeatable.contains(pattern.item))
      return bad("\"item\" needs values that do not repeat; \"{}\" is repeatable", pattern.item);
    return {};
  }

  Result<void> read_pattern(const Json& object) {
    if (!object.is_object()) return bad("expected an object, got {}", object.type_name());
    for (const auto& [key, value] : object.items())
      if (key != "kind" && key != "statements" && key != "question" && key != "answer" && key != "accept" &&
          key != "repeat" && key != "item")
        return bad("unknown key \"{}\"; known are kind, statements, question, answer, accept, repeat, item", key);
    RecallPattern pattern;
    SH_RETURN_IF_ERROR(read_text(object, "kind", pattern.kind));
    if (std::find(recall_kinds().begin(), recall_kinds().end(), pattern.kind) == recall_kinds().end())
      return bad("unknown kind \"{}\"; known are {}", pattern.kind, fmt::join(recall_kinds(), ", "));
    SH_RETURN_IF_ERROR(read_text(object, "question", pattern.question));
    SH_RETURN_IF_ERROR(read_text(object, "answer", pattern.answer));
    if (pattern.question.empty() || pattern.answer.empty()) return bad("needs a \"question\" and an \"answer\"");
    if (object.contains("statements")) {
      SH_ASSIGN(pattern.statements, strings(object["statements"], "statements"));
    }
    if (object.contains("accept")) {
      SH_ASSIGN(pattern.accept, strings(object["accept"], "accept"));
    }
    SH_RETURN_IF_ERROR(read_repeat(object, pattern));
    const std::set<std::string> special = special_slots(pattern);
    for (const std::string& text : pattern.statements) SH_RETURN_IF_ERROR(check_template(text, special));
    for (const std::string& text : pattern.accept) SH_RETURN_IF_ERROR(check_template(text, special));
    SH_RETURN_IF_ERROR(check_template(pattern.question, special));
    SH_RETURN_IF_ERROR(check_template(pattern.answer, special));
    SH_RETURN_IF_ERROR(check_sense(pattern));
    out_.patterns.push_back(std::move(pattern));
    return {};
  }

  /// What would make a question that nobody could answer, or that two facts answer.
  Result<void> check_sense(const RecallPattern& pattern) const {
    const size_t n = pattern.statements.size();
    if (pattern.kind == "verbatim") {
      if (n != 0 || pattern.answer != "{next}" ||
          slots_of(pattern.question) != std::vector<std::string>{"sentence"})
        return bad("verbatim takes no statements, asks with {{sentence}} and answers {{next}}");
      return {};
    }
    const size_t n_least = pattern.kind == "update" || pattern.kind == "two_hop" ? 2 : 1;
    if (n < n_least)
      return bad("{} needs {} statement{} at least", pattern.kind, n_least, n_least == 1 ? "" : "s");
    std::set<std::string> stated;
    for (const std::string& text : pattern.statements)
      for (const std::string& slot : slots_of(text)) stated.insert(slot);
    if (pattern.repeat_max > 0) {
      if (n != 1 || !stated.contains("item"))
        return bad("{} needs one statement, with {{item}} in it", pattern.kind);
      const std::string wanted = pattern.kind == "count" ? "{count}" : "{all}";
      if (pattern.answer != wanted) return bad("the answer of {} is {}", pattern.kind, wanted);
    }
    const std::vector<std::string> answer = slots_of(pattern.answer), question = slots_of(pattern.question);
    if (pattern.kind == "absent") {
      if (!answer.empty()) return bad("the answer of absent is the same whatever the values: no slots");
    } else if (pattern.repeat_max == 0) {
      // Only so does the answer stand in the document word for word.
      const std::string& holder = pattern.statements.back();
      const bool is_stated =
          std::any_of(pattern.statements.begin(), pattern.statements.end(),
                      [&](const std::string& text) { return text.find(pattern.answer) != std::string::npos; });
      if (answer.empty() || !is_stated)
        return bad("no statement holds the answer \"{}\" word for word", pattern.answer);
      if (pattern.kind == "update" && holder.find(pattern.answer) == std::string::npos)
        return bad("the last statement of update must hold its answer \"{}\"", pattern.answer);
    }
    bool has_own = false;
    for (const std::string& slot : question) {
      if (!stated.contains(slot) && pattern.kind != "absent")
        return bad("the question asks by {{{}}}, which no statement holds", slot);
      if (std::find(answer.begin(), answer.end(), slot) != answer.end())
        return bad("the question gives {{{}}} of its answer away", slot);
      has_own = has_own || !out_.repeatable.contains(slot_type(slot));
    }
    if (!has_own) return bad("the question needs a slot whose values do not repeat, or two facts would answer it");
    return {};
  }

  const Json& json_;
  std::string where_;
  RecallPatterns out_;
};

}  // namespace

const std::vector<std::string>& recall_kinds() {
  static const std::vector<std::string> kinds = {"direct", "paraphrased", "reverse",  "two_hop", "update",
                                                 "absent", "count",       "list_all", "verbatim"};
  return kinds;
}

Result<RecallPatterns> parse_recall_patterns(const std::string& json, const std::string& where) {
  auto parsed = parse_json(json);
  if (!parsed.ok())
    return Error{ErrorKind::invalid_argument, fmt::format("{}: {}", where, parsed.error().message)};
  return Reader(*parsed, where).read();
}

std::string_view default_recall_patterns() {
  return kDefaultPatterns;
}

Result<std::string> SlotValues::draw(const std::string& type) {
  if (const auto list = patterns_.lists.find(type); list != patterns_.lists.end()) {
    const std::vector<std::string>& values = list->second;
    const size_t first = rng_.next_below(values.size());
    if (patterns_.repeatable.contains(type)) return values[first];
    for (size_t i = 0; i < values.size(); ++i) {
      const std::string& value = values[(first + i) % values.size()];
      if (used_.insert(value).second) return value;
    }
    return Error{ErrorKind::invalid_argument,
                 fmt::format("the list \"{}\" of the patterns has {} values, and a document needs more: ask for "
                             "fewer --facts, or name it under \"repeatable\" if values may come back",
                             type, values.size())};
  }
  const Generator* generator = find_generator(type);
  SH_CHECK(generator != nullptr, "slot types are checked when patterns are read");
  // Every generator has thousands of values; colours, the fewest, have 224.
  for (int attempt = 0; attempt < 2000; ++attempt) {
    std::string value = generator->make(rng_);
    if (text_.find(value) == std::string_view::npos && used_.insert(value).second) return value;
  }
  return Error{
      ErrorKind::invalid_argument,
      fmt::format("no more values for {{{}}} that are new to the document and to its text: ask for fewer --facts",
                  type)};
}

std::string slot_type(std::string_view name) {
  while (!name.empty() && name.back() >= '0' && name.back() <= '9') name.remove_suffix(1);
  return std::string(name);
}

std::vector<std::string> slots_of(std::string_view text) {
  std::vector<std::string> slots;
  walk_template(
      text, [](std::string_view) {}, [&](std::string_view name) { slots.emplace_back(name); });
  return slots;
}

std::string fill_slots(std::string_view text, const std::map<std::string, std::string>& values) {
  std::string out;
  walk_template(
      text, [&](std::string_view literal) { out += literal; },
      [&](std::string_view name) {
        const auto value = values.find(std::string(name));
        SH_CHECK(value != values.end(), "every slot of a checked pattern has a value");
        out += value->second;
      });
  return out;
}

}  // namespace sh::tools
