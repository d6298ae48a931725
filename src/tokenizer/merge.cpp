// SPDX-License-Identifier: MIT
#include "tokenizer/merge.h"

#include <algorithm>

#include "base/check.h"

namespace sh::tokenizer {

namespace {
// Longest word that the quadratic loop gets; it beats the heap up to there on prose.
constexpr size_t kShortWord = 48;
constexpr uint32_t kNone = 0xFFFFFFFF;
}  // namespace

void MergeTable::reserve(size_t n_merges) {
  size_t n_slots = 16;
  while (n_slots < 2 * n_merges) n_slots *= 2;
  if (n_slots > slots_.size()) grow(n_slots);
}

void MergeTable::grow(size_t n_slots) {
  std::vector<Slot> old(n_slots);
  old.swap(slots_);
  mask_ = n_slots - 1;
  for (const Slot& slot : old) {
    if (slot.key == kEmpty) continue;
    size_t i = slot_of(slot.key);
    while (slots_[i].key != kEmpty) i = (i + 1) & mask_;
    slots_[i] = slot;
  }
}

void MergeTable::add(uint32_t left, uint32_t right, Merge merge) {
  SH_CHECK(left != kNoSymbol && right != kNoSymbol && merge.exists(), "a merge of symbols that do not exist");
  if (2 * (n_merges_ + 1) > slots_.size()) grow(std::max<size_t>(16, 2 * slots_.size()));
  const uint64_t key = key_of(left, right);
  size_t i = slot_of(key);
  while (slots_[i].key != kEmpty) {
    if (slots_[i].key == key) return;
    i = (i + 1) & mask_;
  }
  slots_[i] = {key, merge};
  ++n_merges_;
}

namespace {

void merge_short(const MergeTable& table, std::vector<Symbol>& symbols, std::vector<MergeTable::Merge>& merges) {
  size_t n = symbols.size();
  merges.resize(n);  // merges[i] joins symbols i and i+1; the last joins nothing
  for (size_t i = 0; i + 1 < n; ++i) merges[i] = table.find(symbols[i].id, symbols[i + 1].id);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (!merges[best].exists()) break;
    symbols[best].id = merges[best].result;
    for (size_t i = best + 1; i + 1 < n; ++i) {
      symbols[i] = symbols[i + 1];
      merges[i] = merges[i + 1];
    }
    --n;
    if (best > 0) merges[best - 1] = table.find(symbols[best - 1].id, symbols[best].id);
    if (best + 1 < n) merges[best] = table.find(symbols[best].id, symbols[best + 1].id);
  }
  symbols.resize(n);
}

void merge_long(const MergeTable& table, std::vector<Symbol>& symbols, MergeScratch& scratch) {
  const auto n = static_cast<uint32_t>(symbols.size());
  std::vector<MergeScratch::Candidate>& heap = scratch.heap;
  std::vector<uint32_t>& next = scratch.next;
  std::vector<uint32_t>& previous = scratch.previous;
  const auto later = [](const MergeScratch::Candidate& a, const MergeScratch::Candidate& b) {
    return a.order > b.order;
  };
  heap.clear();
  next.resize(n);
  previous.resize(n);
  const auto candidate_at = [&](uint32_t i) -> MergeScratch::Candidate {
    const MergeTable::Merge merge = table.find(symbols[i].id, symbols[next[i]].id);
    return {static_cast<uint64_t>(merge.rank) << 32 | i, symbols[i].id, symbols[next[i]].id, merge.result};
  };
  for (uint32_t i = 0; i < n; ++i) {
    next[i] = i + 1 < n ? i + 1 : kNone;
    previous[i] = i > 0 ? i - 1 : kNone;
  }
  for (uint32_t i = 0; i + 1 < n; ++i) {
    const MergeScratch::Candidate candidate = candidate_at(i);
    if (candidate.result != kNoSymbol) heap.push_back(candidate);
  }
  std::make_heap(heap.begin(), heap.end(), later);
  const auto push = [&](uint32_t i) {
    const MergeScratch::Candidate candidate = candidate_at(i);
    if (candidate.result == kNoSymbol) return;
    heap.push_back(candidate);
    std::push_heap(heap.begin(), heap.end(), later);
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const MergeScratch::Candidate best = heap.back();
    heap.pop_back();
    const auto i = static_cast<uint32_t>(best.order);
    // A merge nearby may have replaced either symbol since; a removed one holds kNoSymbol, which is in no
    // candidate.
    if (symbols[i].id != best.left || next[i] == kNone || symbols[next[i]].id != best.right) continue;
    const uint32_t gone = next[i];
    symbols[i].id = best.result;
    symbols[gone].id = kNoSymbol;
    next[i] = next[gone];
    if (next[i] != kNone) previous[next[i]] = i;
    if (previous[i] != kNone) push(previous[i]);
    if (next[i] != kNone) push(i);
  }
  size_t n_left = 0;
  for (uint32_t i = 0; i != kNone; i = next[i]) symbols[n_left++] = symbols[i];
  symbols.resize(n_left);
}

}  // namespace

void merge_symbols(const MergeTable& table, std::vector<Symbol>& symbols, MergeScratch& scratch) {
  if (symbols.size() < 2) return;
  if (symbols.size() <= kShortWord) {
    merge_short(table, symbols, scratch.merges);
  } else {
    merge_long(table, symbols, scratch);
  }
}

}  // namespace sh::tokenizer
