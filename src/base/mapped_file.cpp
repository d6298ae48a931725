// SPDX-License-Identifier: MIT
#include "base/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/output_path.h"
#include "base/pages.h"

namespace sh {

namespace {
Error os_error(const char* what, const std::string& path) {
  const int code = errno;
  return {code == ENOENT ? ErrorKind::not_found : ErrorKind::io,
          fmt::format("cannot {} '{}': {}", what, path, std::strerror(code))};
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};
}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return os_error("open", path);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return os_error("inspect", path);
  if (!S_ISREG(info.st_mode)) return Error{ErrorKind::io, fmt::format("'{}' is not a regular file", path)};
  MappedFile file;
  file.path_ = path;
  file.n_bytes_ = static_cast<size_t>(info.st_size);
  if (file.n_bytes_ > 0) {
    void* data = ::mmap(nullptr, file.n_bytes_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (data == MAP_FAILED) {
      file.n_bytes_ = 0;
      return os_error("map", path);
    }
    file.data_ = static_cast<const std::byte*>(data);
  }
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      n_bytes_(std::exchange(other.n_bytes_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(n_bytes_, other.n_bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), n_bytes_);
}

void MappedFile::release(std::span<const std::byte> part) const {
  if (part.data() < data_ || part.data() + part.size() > data_ + n_bytes_) return;
  drop_pages(part.data(), part.size());
}

Result<std::string> read_file(const std::string& path) {
  SH_ASSIGN(const MappedFile file, MappedFile::open(path));
  const auto bytes = file.bytes();
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

Result<void> write_file(const std::string& path, std::span<const std::byte> bytes) {
  SH_RETURN_IF_ERROR(check_writable(path));
  const bool is_direct = is_special_file(path);
  const std::string target = is_direct ? path : end_of_links(path);
  const std::string temporary = is_direct ? path : fmt::format("{}.part.{}", target, ::getpid());
  std::FILE* out = std::fopen(temporary.c_str(), "wb");
  if (out == nullptr) return os_error("write", temporary);
  const bool written = std::fwrite(bytes.data(), 1, bytes.size(), out) == bytes.size();
  if (std::fclose(out) != 0 || !written) {
    Error error = os_error("write", temporary);
    if (!is_direct) std::remove(temporary.c_str());
    return error;
  }
  if (!is_direct && std::rename(temporary.c_str(), target.c_str()) != 0) {
    Error error = os_error("rename to", path);
    std::remove(temporary.c_str());
    return error;
  }
  return {};
}

Result<void> write_file(const std::string& path, const std::string& text) {
  return write_file(path, std::as_bytes(std::span(text.data(), text.size())));
}

}  // namespace sh
