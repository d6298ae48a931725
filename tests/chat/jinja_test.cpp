// SPDX-License-Identifier: MIT
// The Jinja interpreter statement by statement: texts that Python's Jinja2 gives (tests/golden/jinja_cases.json),
// errors and limits.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <time.h>

#include <fstream>
#include <set>
#include <sstream>

#include "base/clock.h"
#include "chat/chat_template.h"
#include "chat/jinja_builtins.h"

namespace sh::chat {
namespace {

Json load_cases() {
  std::ifstream file(std::string(SH_SOURCE_DIR) + "/tests/golden/jinja_cases.json", std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return *parse_json(text.str());
}

Result<std::string> render(const std::string& source, const Json& variables = Json::object(),
                           const RenderLimits& limits = {}) {
  auto parsed = ChatTemplate::parse(source, limits);
  if (!parsed.ok()) return parsed.error();
  PromptInput input;
  input.kwargs = variables;
  return (*parsed)->render(input);
}

std::string error_of(const std::string& source, const RenderLimits& limits = {}) {
  const auto result = render(source, Json::object(), limits);
  return result.ok() ? "no error, but: " + result.value().substr(0, 200) : result.error().message;
}

TEST(Jinja, RendersWhatPythonRenders) {
  const Json data = load_cases();
  ASSERT_GE(data["cases"].size(), 80u);
  for (const Json& one : data["cases"]) {
    const auto source = one["template"].get<std::string>();
    const auto got = render(source, data["variables"]);
    ASSERT_TRUE(got.ok()) << source << "\n" << got.error().message;
    EXPECT_EQ(*got, one["text"].get<std::string>()) << source;
  }
}

TEST(Jinja, EveryFilterAndTestIsInTheCases) {
  std::string all;
  const Json data = load_cases();
  for (const Json& one : data["cases"]) all += one["template"].get<std::string>();
  const auto says = [&](const std::string& text) { return all.find(text) != std::string::npos; };
  for (const FilterDef& filter : all_filters()) {
    const std::string name(filter.name);
    if (name == "fromjson" || name == "from_json") continue;  // not Jinja2's; tested below
    EXPECT_TRUE(says("|" + name) || says("| " + name) || says("map('" + name)) << name;
  }
  for (const TestDef& test : all_tests()) {
    const std::string name(test.name);
    if (name.find_first_of("<=>!") != std::string::npos) continue;  // other spellings, tested below
    EXPECT_TRUE(says("is " + name) || says("is not " + name) || says("'" + name + "'")) << name;
  }
}

TEST(Jinja, TestsThatAreSpelledAsOperators) {
  EXPECT_EQ(
      *render(
          "{{ [1, 2, 3]|select('>', 1)|list }}{{ [1, 2]|select('==', 1)|list }}{{ [1, 2]|reject('!=', 1)|list }}"
          "{{ [1, 2]|select('<', 2)|list }}{{ [1, 2]|select('<=', 2)|list }}{{ [1, 2]|select('>=', 2)|list }}"),
      "[2, 3][1][1][1][1, 2][2]");
}

TEST(Jinja, FromJson) {
  EXPECT_EQ(*render("{{ '{\"a\": [1, null]}'|fromjson }}{{ ('[1]'|from_json)[0] + 1 }}"), "{'a': [1, None]}2");
  EXPECT_NE(error_of("{{ '{'|fromjson }}").find("malformed JSON"), std::string::npos);
}

TEST(Jinja, LineEndsAreNormalisedAndTheLastOneGoes) {
  EXPECT_EQ(*render("a\r\nb\rc\n"), "a\nb\nc");
  EXPECT_EQ(*render("a\n\n"), "a\n");
  EXPECT_EQ(*render("\n"), "");
  EXPECT_EQ(*render(""), "");
}

TEST(Jinja, StrftimeNow) {
  setenv("TZ", "UTC", 1);
  tzset();
  auto parsed = ChatTemplate::parse("{{ strftime_now('%Y-%m-%d %d %b %B %H:%M:%S %j %A %-d %% %Q %9999d') }}");
  PromptInput input;
  input.now_unix_seconds = 1741964966;
  EXPECT_EQ(*(*parsed)->render(input), "2025-03-14 14 Mar March 15:09:26 073 Friday 14 % %Q %9999d");
}

TEST(Jinja, VariablesOfTheRequest) {
  auto parsed = ChatTemplate::parse(
      "{{ bos_token }}{{ tools is defined }}{{ messages[0].tool_calls[0].function.arguments.a }}{{ "
      "add_generation_prompt }}{{ k }}");
  PromptInput input;
  input.messages = *parse_json(
      R"([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{\"a\": 7}"}}]}])");
  input.tools = Json::array();
  input.kwargs["k"] = 18446744073709551615u;
  input.bos_token = "<s>";
  input.add_generation_prompt = false;
  EXPECT_EQ(*(*parsed)->render(input), "<s>False7False1.8446744073709552e+19");
}

TEST(Jinja, ErrorsShowThePlace) {
  EXPECT_EQ(error_of("line one\n  {{ 1 + }}"),
            "chat template, row 2, column 10: expected an expression, got '}}'\n    {{ 1 + }}\n           ^");
  EXPECT_EQ(error_of("é {{ raise_exception('no') }}"),
            "chat template, row 1, column 21: no\n  é {{ raise_exception('no') }}\n                      ^");
  const std::string long_line = error_of(std::string(500, 'a') + "{{ b.c }}" + std::string(500, 'd'));
  EXPECT_NE(long_line.find("row 1, column 505: 'b' is undefined"), std::string::npos) << long_line;
  EXPECT_LT(long_line.size(), 300u);
}

TEST(Jinja, MalformedTemplatesAreErrors) {
  const std::pair<std::string, std::string> cases[] = {
      {"{{ 1", "this tag has no end; expected '}}'"},
      {"{% if x %}a", "expected '{% endif %}'"},
      {"{% for a in b %}{% endif %}", "no statement 'endif'"},
      {"{% endif %}", "no statement 'endif'"},
      {"{# x", "this comment has no end"},
      {"{% raw %}x", "this raw block has no end"},
      {"{{ 'x }}", "this string has no end"},
      {"{{ (1 }}", "unexpected '}', expected ')'"},
      {"{{ 1) }}", "unexpected ')'"},
      {"{{ a $ b }}", "unexpected character '$'"},
      {"{{ 99999999999999999999 }}", "out of range"},
      {"{{ '\\ud800' }}", "no code point"},
      {"{{ '\\xZZ' }}", "2 hexadecimal digits"},
      {"{{ a b }}", "expected '}}', got 'b'"},
      {"{% nonsense %}", "no statement 'nonsense'"},
      {"{% set 1 = 2 %}", "expected a name"},
      {"{% set none = 2 %}", "cannot assign to 'none'"},
      {"{% break %}", "need a loop"},
      {"{% for x in y %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}", "need a loop"},
      {"{% for x in y recursive %}{% endfor %}", "recursive loops are not supported"},
      {"{% macro m(a=1, b) %}{% endmacro %}", "without a default"},
      {"{{ f(a=1, 2) }}", "a positional argument follows a named one"},
      {"{% call x %}{% endcall %}", "needs the call of a macro"},
      {"{{ 1 is odd is even }}", "cannot be chained"},
      {"{{ a[] }}", "an index between the brackets"},
      {"{{ }}", "expected an expression"},
      {std::string(400, '{'), "expected"},
      {"{{ " + std::string(1000, '(') + std::string(1000, ')') + " }}", "nested deeper"},
      {"{{ " + std::string(1000, '-') + "1 }}", "nested deeper"},
      {"{% set " + std::string(1000, '('), "this tag has no end"},
      {"{% set " + std::string(1000, '(') + "a" + std::string(1000, ')') + " = 1 %}", "nested deeper"},
  };
  for (const auto& [source, wanted] : cases) {
    const auto parsed = ChatTemplate::parse(source);
    ASSERT_FALSE(parsed.ok()) << source;
    EXPECT_NE(parsed.error().message.find(wanted), std::string::npos) << source << "\n" << parsed.error().message;
  }
  std::string chain = "{{ a", blocks, sum = "{{ 1";
  for (int i = 0; i < 1000; ++i) (chain += ".b", blocks += "{% if x %}", sum += " + 1");
  EXPECT_NE(error_of(chain + " }}").find("deeper"), std::string::npos);
  EXPECT_NE(error_of(blocks).find("nested deeper"), std::string::npos);
  EXPECT_NE(error_of(sum + " }}").find("deeper"), std::string::npos);
}

TEST(Jinja, WrongOperationsAreErrors) {
  const std::pair<std::string, std::string> cases[] = {
      {"{{ a.b }}", "'a' is undefined"},
      {"{{ a.b.c }}", "'a' is undefined"},
      {"{{ {}.b.c }}", "'b' is undefined"},
      {"{{ a + 'x' }}", "'a' is undefined"},
      {"{{ 'x' + 1 }}", "unsupported operand types for +: str and int"},
      {"{{ 'x' + none }}", "str and NoneType"},
      {"{{ 1 / 0 }}", "division by zero"},
      {"{{ 1 % 0 }}", "division by zero"},
      {"{{ 1 // 0.0 }}", "division by zero"},
      {"{{ 9223372036854775807 + 1 }}", "range of 64 bits"},
      {"{{ 2 ** 64 }}", "range of 64 bits"},
      {"{{ (-8) ** 0.5 }}", "not a real number"},
      {"{{ (-9223372036854775807 - 1) // -1 }}", "range of 64 bits"},
      {"{{ 1 < 'a' }}", "cannot be ordered"},
      {"{{ 1 in 2 }}", "'in' cannot look into"},
      {"{% for a in 1 %}{% endfor %}", "cannot be iterated"},
      {"{% for a, b in [1] %}{% endfor %}", "cannot be iterated"},
      {"{% for a, b in [[1]] %}{% endfor %}", "cannot unpack 1 values into 2 names"},
      {"{{ 1|nonsense }}", "there is no filter 'nonsense'"},
      {"{{ 1 is nonsense }}", "there is no test 'nonsense'"},
      {"{{ [1]|map('nonsense') }}", "there is no filter 'nonsense'"},
      {"{{ nonsense() }}", "'nonsense' is undefined"},
      {"{{ 1() }}", "cannot be called"},
      {"{{ 'a'.nonsense() }}", "'nonsense' is undefined"},
      {"{{ undefined_thing|tojson }}", "'undefined_thing' is undefined"},
      {"{{ range|tojson }}", "cannot be written as JSON"},
      {"{% set d = {} %}{% set d.a = 1 %}", "only of a namespace()"},
      {"{% set q.a = 1 %}", "undefined value"},
      {"{{ {[]: 1} }}", "cannot be a key"},
      {"{{ [1][::0] }}", "cannot be zero"},
      {"{{ 'a'.split('') }}", "not empty"},
      {"{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "takes 1 arguments, got 2"},
      {"{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", "no parameter 'b'"},
      {"{% macro m(a) %}{% endmacro %}{{ m(1, a=2) }}", "two values for 'a'"},
      {"{{ '%s %s' % 1 }}", "more fields than values"},
      {"{{ '%d' % 'x' }}", "needs a number"},
      {"{{ '{'.format() }}", "has no '}'"},
      {"{{ [].pop() }}", "no item at this index"},
      {"{{ {}.pop(1) }}", "no such key"},
  };
  for (const auto& [source, wanted] : cases)
    EXPECT_NE(error_of(source).find(wanted), std::string::npos) << source << "\n" << error_of(source);
}

TEST(Jinja, UnknownFiltersMatterOnlyWhereTheyAreReached) {
  EXPECT_EQ(*render("{% if false %}{{ 1|nonsense }}{{ 1 is nonsense }}{% endif %}ok"), "ok");
}

TEST(Jinja, HostileTemplatesEndSoon) {
  const std::pair<std::string, std::string> cases[] = {
      {"{% for a in range(99999) %}{% for b in range(99) %}{% endfor %}{% endfor %}", "steps"},
      {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested deeper than 500"},
      {"{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", "nested deeper than 500"},
      {"{{ range(100001) }}", "more than 100000 items"},
      {"{{ range(-9223372036854775807, 9223372036854775807) }}", "more than 100000 items"},
      {"{{ 'x' * 9223372036854775807 }}", "bytes"},
      {"{{ [1] * 9223372036854775807 }}", "bytes"},
      {"{{ 'x' * 1000000000 }}", "bytes"},
      {"{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "bytes"},
      {"{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s.replace('x', 'xx') %}{% endfor "
       "%}",
       "steps"},
      {"{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "bytes"},
      {"{% set ns = namespace(s=[]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
       ""},
      {"{% set ns = namespace(s=[]) %}{% for i in range(999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}",
       "deeper than 300"},
      {"{% set ns = namespace(s=[], t=[]) %}{% for i in range(999) %}{% set ns.s = [ns.s] %}{% set ns.t = [ns.t] "
       "%}{% endfor %}"
       "{{ ns.s == ns.t }}",
       "deeper than 300"},
      {"{% set a = [] %}{% do a.append(a) %}{{ a }}", "deeper than 300"},
      {"{% set a = {} %}{% do a.update(b=a) %}{{ a|tojson }}", "deeper than 300"},
      {"{% set t = 'x' * 1000000 %}{% for i in range(999) %}{{ t }}{% endfor %}", "the prompt is longer"},
      {"{{ '%999999d' % 1 }}", "width of 1000"},
      {"{{ 'a'|indent(999999999) }}", "width of 1000"},
      {"{{ 'a'|center(999999999999) }}", "bytes"},
      {"{{ [1]|batch(99999999999, 0) }}", "bytes"},
      {"{{ [1]|slice(99999999999) }}", "steps"},
      {"{{ [1]|tojson(indent=1000000) }}", "indent of 100"},
  };
  RenderLimits limits;  // a tenth of the default ones, for the time of the test
  limits.max_steps = 5'000'000;
  limits.max_output_bytes = 6u << 20;
  limits.max_live_bytes = 50u << 20;
  for (const auto& [source, wanted] : cases) {
    const Stopwatch watch;
    const std::string message = error_of(source, limits);
    EXPECT_EQ(message.find("no error"), std::string::npos) << source;
    EXPECT_NE(message.find(wanted), std::string::npos) << source << "\n" << message;
    // Measured 0.2 s at most; the bound is for a loaded machine and means "not for ever".
    EXPECT_LT(watch.seconds(), 30) << source;
  }
}

TEST(Jinja, TheDefaultLimitsEndAnEndlessTemplate) {
  EXPECT_NE(error_of("{% for a in range(99999) %}{% for b in range(999) %}{% endfor %}{% endfor %}").find("steps"),
            std::string::npos);
}

TEST(Jinja, AMacroOutlivesTheLoopThatDefinedIt) {
  EXPECT_EQ(*render("{% set ns = namespace(f=none) %}{% for i in [1, 2] %}{% set v = i * 10 %}{% macro m() %}{{ v "
                    "}}{% endmacro %}"
                    "{% if loop.first %}{% set ns.f = m %}{% endif %}{% endfor %}{{ ns.f() }}"),
            "10");
}

TEST(Jinja, ALoopVariableMayOutliveItsLoop) {
  EXPECT_EQ(*render("{% set ns = namespace(l=none) %}{% for i in [1, 2] %}{% set ns.l = loop %}{% endfor %}"
                    "[{{ ns.l.previtem }}{{ ns.l.nextitem }}{{ ns.l.length }}]"),
            "[22]");
}

}  // namespace
}  // namespace sh::chat
