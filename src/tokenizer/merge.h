// SPDX-License-Identifier: MIT
// The merges of byte-pair encoding, for both kinds of vocabulary: pairs of symbols, best rank first, leftmost
// among equals.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sh::tokenizer {

/// A stretch of the word: its symbol and where it begins. Symbols below n_vocab are token ids; the others have no
/// token.
struct Symbol {
  uint32_t id;
  uint32_t begin;  // byte offset in the word
};
/// A symbol that no merge knows.
inline constexpr uint32_t kNoSymbol = 0xFFFFFFFF;

/// (left, right) → (rank, result) in one flat hash table.
class MergeTable {
 public:
  struct Merge {
    uint32_t rank = kNoSymbol;
    uint32_t result = kNoSymbol;
    bool exists() const { return result != kNoSymbol; }
  };
  void reserve(size_t n_merges);
  /// Keeps the merge that is there already, if any.
  void add(uint32_t left, uint32_t right, Merge merge);
  Merge find(uint32_t left, uint32_t right) const {
    if (slots_.empty()) return {};
    for (size_t i = slot_of(key_of(left, right));; i = (i + 1) & mask_) {
      if (slots_[i].key == key_of(left, right)) return slots_[i].merge;
      if (slots_[i].key == kEmpty) return {};
    }
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};  // the pair (kNoSymbol, kNoSymbol), which is never added
  struct Slot {
    uint64_t key = kEmpty;
    Merge merge;
  };
  static uint64_t key_of(uint32_t left, uint32_t right) { return static_cast<uint64_t>(left) << 32 | right; }
  size_t slot_of(uint64_t key) const { return (key * 0x9E3779B97F4A7C15ull >> 20) & mask_; }
  void grow(size_t n_slots);

  std::vector<Slot> slots_;
  size_t mask_ = 0;
  size_t n_merges_ = 0;
};

/// Memory that merge_symbols() reuses from word to word.
struct MergeScratch {
  struct Candidate {
    uint64_t order;  // rank, then position: the smaller goes first
    uint32_t left;
    uint32_t right;
    uint32_t result;
  };
  std::vector<Candidate> heap;
  std::vector<uint32_t> next;
  std::vector<uint32_t> previous;
  std::vector<MergeTable::Merge> merges;
};

/// Applies all merges to the symbols of one word, in place.
/// Cost: O(n²) for short words, where it is faster, and O(n log n) for long ones.
void merge_symbols(const MergeTable& table, std::vector<Symbol>& symbols, MergeScratch& scratch);

}  // namespace sh::tokenizer
