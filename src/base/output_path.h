// SPDX-License-Identifier: MIT
// What a path to be written names: known before the work whose result goes there.
#pragma once

#include <string>

#include "base/result.h"

namespace sh {

/// What a path names at the end of its symbolic links, whether anything is there or not.
std::string end_of_links(const std::string& path);
/// Something is there that is no regular file and no folder: a device, a pipe.
bool is_special_file(const std::string& path);
/// Whether write_file() can put a file there, as far as that can be known without doing it.
/// Errors: io (a folder stands there; nobody may write it), not_found (the folder that it belongs in).
Result<void> check_writable(const std::string& path);

}  // namespace sh
