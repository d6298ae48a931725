// SPDX-License-Identifier: MIT
// The table of methods, and the document that lists them.
#include "compaction/method.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>

#include "base/mapped_file.h"

namespace sh::compaction {
namespace {

TEST(Methods, TheDocumentListsThem) {
  const Result<std::string> document = read_file(std::string(SH_SOURCE_DIR) + "/docs/compact-api.md");
  ASSERT_TRUE(document.ok());
  std::string table = "| method | what it does |\n|---|---|\n";
  for (const CompactionMethod* method : methods())
    table += fmt::format("| `{}`{} | {} |\n", method->name,
                         method->alias == nullptr ? "" : fmt::format(" or `{}`", method->alias), method->summary);
  EXPECT_NE(document->find(table + "\n"), std::string::npos) << "docs/compact-api.md should have:\n" << table;
}

}  // namespace
}  // namespace sh::compaction
