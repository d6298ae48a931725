// SPDX-License-Identifier: MIT
// Every pre-tokenizer: names, patterns, flags. The patterns are data of the model makers (their tokenizer.json
// files), written for PCRE2 so that no pattern can take more than linear time on a run of one character:
// - a group under a quantifier is written as one character class, or made possessive where nothing can follow it;
// - "letter that is not a-z" is [^\P{L}a-z], not a lookahead under a star.
#include "tokenizer/pre_tokenizer_table.h"

#include <algorithm>

namespace sh::tokenizer {

namespace {

#define SH_CONTRACTION "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
#define SH_WORD "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
#define SH_SPACES "\\s+(?!\\S)|\\s+"
#define SH_HAN                                                                                                    \
  "\\x{3400}-\\x{4DBF}\\x{4E00}-\\x{9FFF}\\x{F900}-\\x{FAFF}\\x{20000}-\\x{2A6DF}\\x{2A700}-\\x{2EBEF}\\x{2F800}" \
  "-"                                                                                                             \
  "\\x{2FA1F}"

constexpr std::string_view kGpt2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)";
constexpr std::string_view kLlama3 =
    SH_CONTRACTION "|" SH_WORD "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|" SH_SPACES;
constexpr std::string_view kQwen2 =
    SH_CONTRACTION "|" SH_WORD "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|" SH_SPACES;

constexpr std::string_view kDefaultNames[] = {"default"};
constexpr std::string_view kDefaultPatterns[] = {"[\\p{P}$+<=>^~|]+", kGpt2, "\\p{N}+", "[0-9][0-9][0-9]"};

constexpr std::string_view kGpt2Names[] = {"gpt-2",      "phi-2",      "jina-es", "jina-de", "gigachat",
                                           "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum",  "modern-bert",
                                           "mpt",        "olmo",       "jais",    "exaone4"};
constexpr std::string_view kGpt2Patterns[] = {kGpt2};
constexpr std::string_view kGpt2ExactNames[] = {"trillion", "granite-docling"};

constexpr std::string_view kStarcoderNames[] = {"starcoder", "refact",     "codeshell",
                                                "exaone",    "minerva-7b", "mellum2"};
constexpr std::string_view kDigitThenGpt2Patterns[] = {"\\p{N}", kGpt2};
constexpr std::string_view kCommandRNames[] = {"command-r", "smollm"};

constexpr std::string_view kFalconNames[] = {"falcon"};
constexpr std::string_view kFalconPatterns[] = {"[\\p{P}$+<=>^~|`]+", kGpt2, "[0-9][0-9][0-9]"};

constexpr std::string_view kLlama3Names[] = {"llama3",  "llama-v3", "llama-bpe", "falcon3",     "falcon-h1",
                                             "pixtral", "midm-2.0", "lfm2",      "jina-v5-nano"};
constexpr std::string_view kLlama3Patterns[] = {kLlama3};
constexpr std::string_view kLlama3CleanNames[] = {"dbrx", "smaug-bpe", "glm4", "chatglm-bpe"};

constexpr std::string_view kQwen2Names[] = {"qwen2",   "deepseek-r1-qwen", "kormo",     "f2llmv2",
                                            "hunyuan", "grok-2",           "solar-open"};
constexpr std::string_view kQwen2Patterns[] = {kQwen2};
constexpr std::string_view kQwen2CleanNames[] = {"stablelm2", "megrez"};

constexpr std::string_view kQwen35Names[] = {"qwen35"};
constexpr std::string_view kQwen35Patterns[] = {
    SH_CONTRACTION
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|" SH_SPACES};

constexpr std::string_view kMiniCpm5Names[] = {"minicpm5"};
constexpr std::string_view kMiniCpm5Patterns[] = {
    "\\p{N}{1,3}", SH_CONTRACTION "|" SH_WORD "|\\p{N}+| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|" SH_SPACES};

constexpr std::string_view kBailingNames[] = {"bailingmoe", "bailingmoe2", "llada-moe"};
constexpr std::string_view kBailingPatterns[] = {"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|" SH_WORD
                                                 "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]|" SH_SPACES};

constexpr std::string_view kSeedCoderNames[] = {"seed-coder"};
constexpr std::string_view kSeedCoderPatterns[] = {
    SH_CONTRACTION "|" SH_WORD "|\\p{N}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|\\s*[\\r\\n]+|" SH_SPACES};

constexpr std::string_view kExaoneMoeNames[] = {"exaone-moe"};
constexpr std::string_view kExaoneMoePatterns[] = {
    SH_CONTRACTION
    "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}(?:[\\p{L}\\p{M}]++| \\p{L})*+"
    "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?|\\s*[\\r\\n]|" SH_SPACES};

constexpr std::string_view kTekkenNames[] = {"tekken"};
constexpr std::string_view kTekkenPatterns[] = {
    "[^\\r\\n\\p{L}\\p{N}]?[^\\P{L}a-z]*[^\\P{L}A-Z]+|[^\\r\\n\\p{L}\\p{N}]?[^\\P{L}a-z]+[^\\P{L}A-Z]*"
    "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|" SH_SPACES};

constexpr std::string_view kGpt4oNames[] = {"gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"};
constexpr std::string_view kGpt4oPatterns[] = {
    "[^\\r\\n\\p{L}\\p{N}]?[^\\P{L}a-z]*[^\\P{L}A-Z]+(?:" SH_CONTRACTION
    ")?|[^\\r\\n\\p{L}\\p{N}]?[^\\P{L}a-z]+[^\\P{L}A-Z]*(?:" SH_CONTRACTION
    ")?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|" SH_SPACES};

constexpr std::string_view kKimiK2Names[] = {"kimi-k2"};
constexpr std::string_view kKimiK2Patterns[] = {
    "[" SH_HAN "]+|[^\\r\\n\\p{L}\\p{N}]?[^\\P{L}" SH_HAN "]+(?:" SH_CONTRACTION
    ")?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|" SH_SPACES};

constexpr std::string_view kDeepSeekLlmNames[] = {"deepseek-llm"};
constexpr std::string_view kDeepSeekLlmPatterns[] = {
    "[\\r\\n]",
    // clang-format off
    "\\s?[A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}\\x{1C4}-\\x{293}"
    "\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}\\x{37F}\\x{386}\\x{388}-\\x{38A}"
    "\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}\\x{531}-\\x{556}"
    "\\x{10A0}-\\x{10C5}\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}"
    "\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}\\x{1F18}-\\x{1F1D}"
    "\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}\\x{1F5D}\\x{1F5F}-\\x{1F7D}"
    "\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}"
    "\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}"
    "\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}\\x{2126}\\x{2128}\\x{212A}-\\x{212D}"
    "\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}"
    "\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}"
    "\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}"
    "\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}"
    "\\x{104B0}-\\x{104D3}\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{118DF}"
    "\\x{1E900}-\\x{1E943}]+",
    // clang-format on
    "\\s?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}]+",
    "(?<!\\s)\\s++\\z", "[\\x{800}-\\x{9FA5}\\x{AC00}-\\x{D7FF}]+", "\\p{N}+"};

constexpr std::string_view kDeepSeekCoderNames[] = {"deepseek-coder"};
constexpr std::string_view kDeepSeekCoderPatterns[] = {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+",
                                                       "[\\x{800}-\\x{9FA5}\\x{AC00}-\\x{D7FF}]+", "\\p{N}"};

constexpr std::string_view kDeepSeek3Names[] = {"deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"};
constexpr std::string_view kDeepSeek3Patterns[] = {
    "\\p{N}{1,3}", "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{30FF}]+",
    "[!-/:-@\\[-`{-~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
    "?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|" SH_SPACES};

constexpr std::string_view kPoroNames[] = {"poro-chat"};
constexpr std::string_view kPoroPatterns[] = {
    " ?[^(\\s|.,!?\\x{2026}\\x{3002}\\x{FF0C}\\x{3001}\\x{964}\\x{6D4}\\x{60C})]+"};
constexpr std::string_view kBloomNames[] = {"bloom", "gpt3-finnish"};
constexpr std::string_view kVikingNames[] = {"viking"};
constexpr std::string_view kVikingPatterns[] = {kPoroPatterns[0], "\\p{N}"};

// Groups of three digits from the right: the first two patterns isolate a run of digits and cut it.
constexpr std::string_view kTinyAyaNames[] = {"tiny_aya", "cohere2moe"};
constexpr std::string_view kTinyAyaPatterns[] = {
    "(?<!\\d)\\d++\\b", "\\A(?=\\d++\\z)(?:\\d{1,2}(?=(?:\\d{3})*+\\z)|\\d{3})|\\G(?!\\A)\\d{3}",
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?:" SH_CONTRACTION
    ")?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?"
    ":" SH_CONTRACTION ")?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|" SH_SPACES};

constexpr PreTokenizerRule kRules[] = {
    {.names = kDefaultNames, .patterns = kDefaultPatterns, .cleans_spaces = true},
    {.names = kGpt2Names, .patterns = kGpt2Patterns, .cleans_spaces = true},
    {.names = kGpt2ExactNames, .patterns = kGpt2Patterns},
    {.names = kStarcoderNames, .patterns = kDigitThenGpt2Patterns, .cleans_spaces = true},
    {.names = kCommandRNames, .patterns = kDigitThenGpt2Patterns},
    {.names = kFalconNames, .patterns = kFalconPatterns, .cleans_spaces = true},
    {.names = kLlama3Names,
     .patterns = kLlama3Patterns,
     .whole_words = true,
     .adds_bos = true,
     .cleans_spaces = true},
    {.names = kLlama3CleanNames, .patterns = kLlama3Patterns, .cleans_spaces = true},
    {.names = kQwen2Names, .patterns = kQwen2Patterns},
    {.names = kQwen2CleanNames, .patterns = kQwen2Patterns, .cleans_spaces = true},
    {.names = kQwen35Names, .patterns = kQwen35Patterns},
    {.names = kMiniCpm5Names, .patterns = kMiniCpm5Patterns, .whole_words = true, .cleans_spaces = true},
    {.names = kBailingNames, .patterns = kBailingPatterns},
    {.names = kSeedCoderNames, .patterns = kSeedCoderPatterns},
    {.names = kExaoneMoeNames, .patterns = kExaoneMoePatterns, .cleans_spaces = true},
    {.names = kTekkenNames, .patterns = kTekkenPatterns, .whole_words = true, .adds_bos = true},
    {.names = kGpt4oNames, .patterns = kGpt4oPatterns},
    {.names = kKimiK2Names, .patterns = kKimiK2Patterns},
    {.names = kDeepSeekLlmNames, .patterns = kDeepSeekLlmPatterns},
    {.names = kDeepSeekCoderNames, .patterns = kDeepSeekCoderPatterns},
    {.names = kDeepSeek3Names, .patterns = kDeepSeek3Patterns},
    {.names = kPoroNames, .patterns = kPoroPatterns},
    {.names = kBloomNames, .patterns = kPoroPatterns, .cleans_spaces = true},
    {.names = kVikingNames, .patterns = kVikingPatterns},
    {.names = kTinyAyaNames, .patterns = kTinyAyaPatterns},
};

}  // namespace

std::span<const PreTokenizerRule> pre_tokenizer_rules() {
  return kRules;
}

const PreTokenizerRule* find_pre_tokenizer_rule(std::string_view name) {
  if (name.empty()) return kRules;
  for (const PreTokenizerRule& rule : kRules) {
    if (std::find(rule.names.begin(), rule.names.end(), name) != rule.names.end()) return &rule;
  }
  return nullptr;
}

}  // namespace sh::tokenizer
