// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "base/result.h"

namespace sh {

/// A file mapped read-only for as long as the object lives.
class MappedFile {
 public:
  /// Errors: not_found, io; the message names the path.
  static Result<MappedFile> open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, n_bytes_}; }
  const std::string& path() const { return path_; }
  /// Says that `part` of the bytes is not needed soon: whole pages of it leave the process. Reading them again brings
  /// them back. Does nothing for bytes of another place.
  void release(std::span<const std::byte> part) const;

 private:
  MappedFile() = default;
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t n_bytes_ = 0;
};

/// The whole file as a string. Errors: not_found, io.
Result<std::string> read_file(const std::string& path);
/// Writes to a temporary beside `path` and renames it over, so that a crash leaves the old file. The file behind a
/// symbolic link is written, not the link; a device or pipe is written to as it is.
/// Errors: those of check_writable() (base/output_path.h), io.
Result<void> write_file(const std::string& path, std::span<const std::byte> bytes);
Result<void> write_file(const std::string& path, const std::string& text);

}  // namespace sh
