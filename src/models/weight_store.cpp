// SPDX-License-Identifier: MIT
#include "models/weight_store.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/platform.h"
#include "tensor/packed.h"

namespace sh::models {

namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
/// Bytes that one task packs: some 100 us.
constexpr int64_t kBytesPerTask = 256 << 10;
/// Packing takes about a second for 5 GB; a file that is not in memory comes at the disk's speed.
constexpr double kSecondsPerLogLine = 2.0;

int64_t rounded_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

}  // namespace

struct WeightStore::State {
  struct Job {
    const gguf::TensorInfo* tensor;
    ops::Weight weight;
    std::byte* to;
  };

  gguf::File file;
  const kernels::KernelSet* kernels = nullptr;  // null: nothing is packed
  void* mapping = nullptr;
  int64_t mapping_bytes = 0;
  std::byte* next = nullptr;  // free memory of the mapping
  std::vector<Job> jobs;

  explicit State(const gguf::File& file_) : file(file_) {}
  State(const State&) = delete;
  ~State() {
    if (mapping != nullptr) ::munmap(mapping, static_cast<size_t>(mapping_bytes));
  }

  bool packs(DType dtype) const {
    return kernels != nullptr && can_pack(dtype) && kernels->weight_kernel(dtype).matmul_packed != nullptr;
  }
};

WeightStore::WeightStore(const gguf::File& file) : state_(std::make_shared<State>(file)) {}

const gguf::File& WeightStore::file() const {
  return state_->file;
}

Result<void> WeightStore::reserve_packed(const kernels::KernelSet& kernels) {
  State& s = *state_;
  SH_CHECK(s.mapping == nullptr, "reserved twice");
  s.kernels = &kernels;
  int64_t n_bytes = kHugePage;  // the first matrix begins with a huge page
  for (const gguf::TensorInfo& tensor : s.file.tensors()) {
    if (!s.packs(tensor.dtype) || tensor.shape.size() < 2) continue;
    const int64_t n_matrices = tensor.n_elements() / std::max<int64_t>(1, tensor.shape[0] * tensor.shape[1]);
    n_bytes += n_matrices * packed_bytes(tensor.dtype, tensor.shape[1], tensor.shape[0]) + kCacheLine;
  }
  // Huge pages: a decode step walks through all of it, and 4 KiB pages would cost a walk of the page table each.
  void* mapping = ::mmap(nullptr, static_cast<size_t>(n_bytes), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED)
    return Error{
        ErrorKind::out_of_memory,
        fmt::format("cannot reserve {} bytes for repacked weights: {}; --no-repack reads them from the file",
                    n_bytes, std::strerror(errno))};
  ::madvise(mapping, static_cast<size_t>(n_bytes), MADV_HUGEPAGE);
  s.mapping = mapping;
  s.mapping_bytes = n_bytes;
  s.next = reinterpret_cast<std::byte*>(rounded_up(reinterpret_cast<int64_t>(mapping), kHugePage));
  return {};
}

ops::Weight WeightStore::place(const gguf::TensorInfo& tensor, int64_t n_in, int64_t n_out, int64_t n_stack) {
  State& s = *state_;
  ops::Weight weight{
      .dtype = tensor.dtype, .data = tensor.data.data(), .n_in = n_in, .n_out = n_out, .n_stack = n_stack};
  // A shape of fewer dimensions was not counted: it is a single row, which a file may write as a vector.
  if (!s.packs(tensor.dtype) || tensor.shape.size() < 2) return weight;
  weight.is_packed = true;
  weight.data = s.next;
  s.jobs.push_back({&tensor, weight, s.next});
  s.next += rounded_up(n_stack * weight.matrix_bytes(), kCacheLine);
  SH_CHECK(s.next <= static_cast<std::byte*>(s.mapping) + s.mapping_bytes, "a tensor is packed twice");
  return weight;
}

// A worker packs, and so touches first, the part of a matrix that is its share of the product later (of q, k and
// v, which are one list of tasks then, only a part of it).
void WeightStore::pack(ThreadPool& pool) {
  State& s = *state_;
  int64_t n_bytes = 0, n_done = 0;
  for (const State::Job& job : s.jobs) n_bytes += static_cast<int64_t>(job.tensor->data.size());
  Stopwatch since_line;
  for (const State::Job& job : s.jobs) {
    const ops::Weight& w = job.weight;
    const int64_t panel_bytes = kPackedRows * w.row_bytes(), panels_per_matrix = w.matrix_bytes() / panel_bytes;
    const int64_t n_panels = w.n_stack * panels_per_matrix,
                  step = std::max<int64_t>(1, kBytesPerTask / panel_bytes);
    pool.run((n_panels + step - 1) / step, [&](int64_t task, int) {
      for (int64_t p = task * step; p < std::min(n_panels, (task + 1) * step); ++p) {
        const int64_t matrix = p / panels_per_matrix, row = p % panels_per_matrix * kPackedRows;
        pack_panel(w.dtype, job.tensor->data.data() + (matrix * w.n_out + row) * w.row_bytes(),
                   std::min(kPackedRows, w.n_out - row), w.n_in, job.to + p * panel_bytes);
      }
    });
    s.file.release(*job.tensor);
    n_done += static_cast<int64_t>(job.tensor->data.size());
    if (since_line.seconds() < kSecondsPerLogLine) continue;
    since_line = Stopwatch();
    const double share = static_cast<double>(n_done) / static_cast<double>(n_bytes);
    log_info("repacking weights: {:.0f} % of {:.1f} GB", 100.0 * share, 1e-9 * static_cast<double>(n_bytes));
  }
  s.jobs.clear();
}

}  // namespace sh::models
