// SPDX-License-Identifier: MIT
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <optional>
#include <set>

#include "kv/kv_testing.h"
#include "kv/paged_region.h"

namespace sh::kv {
namespace {

using testing::make_pool;

constexpr int64_t kMiB = 1 << 20;

KvLayout one_layer(int32_t width, DType dtype) {
  return KvLayout{.layers = {{.n_heads = 2, .key_width = width, .value_width = width, .window = 0}},
                  .key_type = dtype,
                  .value_type = dtype};
}

int64_t resident_bytes() {
  long pages_total = 0, pages_resident = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  EXPECT_EQ(std::fscanf(file, "%ld %ld", &pages_total, &pages_resident), 2);
  std::fclose(file);
  return pages_resident * sysconf(_SC_PAGESIZE);
}

/// Whether the page that holds `address` takes memory.
bool is_resident(const void* address) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  unsigned char state = 0;
  void* begin = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(address) / page * page);
  EXPECT_EQ(mincore(begin, page, &state), 0);
  return (state & 1) != 0;
}

std::vector<BlockId> take(BlockPool& pool, int64_t n_blocks) {
  std::vector<BlockId> blocks;
  for (int64_t i = 0; i < n_blocks; ++i) blocks.push_back(pool.allocate(0).value());
  return blocks;
}

void fill(BlockPool& pool, BlockId block, int value) {
  std::memset(pool.keys(block), value, static_cast<size_t>(pool.block_bytes(block.arena)));
}

bool is_filled(BlockPool& pool, BlockId block, int value) {
  const std::byte* data = pool.keys(block);
  return std::all_of(data, data + pool.block_bytes(block.arena),
                     [&](std::byte b) { return b == static_cast<std::byte>(value); });
}

// Blocks taken together lie side by side, and their pages are there before the first touch.
TEST(BlockPool, ManyBlocksAreCommittedTogether) {
  const KvLayout layout = one_layer(64, DType::f32);  // 8 KiB a block
  const auto pool = BlockPool::create(layout, 1 << 20).value();
  const std::vector<BlockId> early = take(*pool, 3);
  pool->release(early[1]);
  std::optional<BlockPool::Claim> claim = pool->claim(40 * pool->block_bytes(0));
  ASSERT_TRUE(claim.has_value());
  std::vector<BlockId> blocks(40);
  pool->allocate(0, blocks, *claim);
  EXPECT_EQ(blocks[0], early[1]) << "the lowest free slot first";
  for (size_t i = 1; i < blocks.size(); ++i) EXPECT_EQ(blocks[i].slot, static_cast<int32_t>(i) + 2);
  for (const BlockId block : blocks) {
    EXPECT_TRUE(is_resident(pool->keys(block)));
    EXPECT_TRUE(is_resident(pool->values(block)));
  }
  EXPECT_EQ(pool->stats().n_blocks_used, 42);
  EXPECT_EQ(pool->stats().bytes_used, 42 * pool->block_bytes(0));
  pool->release(blocks);
  EXPECT_FALSE(is_resident(pool->keys(blocks[20])));
}

void give_back(PagedRegion& region) {
  std::vector<int64_t> pages = region.take_idle();
  std::sort(pages.begin(), pages.end());
  region.give_back(pages);
}

// A page that found a new user before give_back() is not taken from it.
TEST(PagedRegion, GivesBackOnlyWhatNobodyUses) {
  PagedRegion region = PagedRegion::reserve(10 * 4096).value();
  region.retain(0, 100);
  region.retain(4000, 5000);
  region.retain(20000, 30000);
  std::memset(region.data(), 7, 30000);
  region.release(0, 100);
  region.release(4000, 5000);
  region.release(20000, 30000);
  std::vector<int64_t> pages = region.take_idle();
  region.retain(200, 300);
  std::sort(pages.begin(), pages.end());
  region.give_back(pages);
  EXPECT_EQ(region.data()[250], std::byte{7});
  EXPECT_FALSE(is_resident(region.data() + 4900));
  EXPECT_FALSE(is_resident(region.data() + 25000));
  region.release(200, 300);
  give_back(region);
  EXPECT_FALSE(is_resident(region.data()));
}

TEST(BlockPool, CreationCommitsNothing) {
  const int64_t before = resident_bytes();
  const auto pool = make_pool(one_layer(64, DType::f16), 8192 * kMiB);
  // Slack: the pool's own few objects and what the allocator takes for them.
  EXPECT_LT(resident_bytes() - before, kMiB);
  EXPECT_GE(pool->stats().bytes_reserved, 8192 * kMiB);
  EXPECT_EQ(pool->stats().bytes_used, 0);
}

// What the process may hold beside the blocks: the pool's free lists and page counters. The address sanitizer also
// keeps the lists that were outgrown.
#ifdef __SANITIZE_ADDRESS__
constexpr int64_t kBookkeeping = 20 * kMiB;  // 15.7 with the smallest blocks
#else
constexpr int64_t kBookkeeping = 3 * kMiB;
#endif

// Blocks of q8_0 (2176 bytes) share pages with their neighbours, blocks of f32 x 128 (16 KiB) span several.
TEST(BlockPool, MemoryGoesBackToTheSystem) {
  const std::pair<int32_t, DType> shapes[] = {
      {32, DType::q4_0}, {64, DType::q8_0}, {64, DType::f16}, {96, DType::f16}, {128, DType::f32}};
  for (const auto& [width, dtype] : shapes) {
    SCOPED_TRACE(tensor_format(dtype).name);
    const auto pool = make_pool(one_layer(width, dtype), 96 * kMiB);
    const int64_t before = resident_bytes();
    std::vector<BlockId> blocks = take(*pool, 64 * kMiB / pool->block_bytes(0));
    for (const BlockId block : blocks) fill(*pool, block, 1);
    const int64_t full = resident_bytes();
    EXPECT_GT(full - before, 63 * kMiB);
    // The first half one by one in random order, the rest in one go.
    Rng rng(7);
    for (size_t n = blocks.size() / 2; n > 0; --n) {
      std::swap(blocks[rng.next_below(n)], blocks[n - 1]);
      pool->release(blocks[n - 1]);
      blocks[n - 1] = blocks.back();
      blocks.pop_back();
    }
    EXPECT_LT(resident_bytes() - before, 33 * kMiB + kBookkeeping);
    pool->release(blocks);
    EXPECT_LT(resident_bytes() - before, kBookkeeping);
    EXPECT_EQ(pool->stats().bytes_used, 0);
  }
}

TEST(BlockPool, NeighboursOnAPageKeepTheirContent) {
  const auto pool = make_pool(one_layer(32, DType::q4_0), kMiB);
  std::vector<BlockId> blocks = take(*pool, 200);
  for (size_t i = 0; i < blocks.size(); ++i) fill(*pool, blocks[i], static_cast<int>(i % 251));
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (i % 3 != 0) pool->release(blocks[i]);
  }
  for (size_t i = 0; i < blocks.size(); i += 3)
    EXPECT_TRUE(is_filled(*pool, blocks[i], static_cast<int>(i % 251))) << i;
}

TEST(BlockPool, TakesTheLowestFreeSlot) {
  const auto pool = make_pool(one_layer(64, DType::f16), kMiB);
  const std::vector<BlockId> blocks = take(*pool, 10);
  for (const size_t i : {7, 2, 5}) pool->release(blocks[i]);
  EXPECT_EQ(pool->allocate(0).value(), blocks[2]);
  EXPECT_EQ(pool->allocate(0).value(), blocks[5]);
  EXPECT_EQ(pool->allocate(0).value(), blocks[7]);
  EXPECT_EQ(pool->allocate(0).value().slot, 10);
}

TEST(BlockPool, BudgetRefusesAndRecovers) {
  const auto pool = make_pool(one_layer(64, DType::f16), 10 * 4096 + 100);
  EXPECT_EQ(pool->stats().n_blocks_capacity, 10);
  EXPECT_EQ(pool->n_available(0), 10);
  const std::vector<BlockId> blocks = take(*pool, 10);
  const PoolStats full = pool->stats();
  const auto refused = pool->allocate(0);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind, ErrorKind::out_of_memory);
  EXPECT_FALSE(pool->clone(blocks[0]).ok());
  EXPECT_TRUE(testing::operator==(full, pool->stats()));
  pool->release(blocks[3]);
  EXPECT_EQ(pool->allocate(0).value(), blocks[3]);
}

TEST(BlockPool, ClaimsKeepBytesForTheirOwner) {
  const auto pool = make_pool(one_layer(64, DType::f16), 10 * 4096);
  const std::vector<BlockId> blocks = take(*pool, 6);
  pool->add_reference(blocks[0]);
  EXPECT_EQ(pool->bytes_held_alone(blocks), 5 * 4096);
  {
    std::optional<BlockPool::Claim> claim = pool->claim(3 * 4096);
    ASSERT_TRUE(claim.has_value());
    EXPECT_EQ(pool->n_available(0), 1);
    EXPECT_FALSE(pool->claim(2 * 4096).has_value());
    ASSERT_TRUE(pool->allocate(0).ok());
    EXPECT_FALSE(pool->allocate(0).ok());
    EXPECT_FALSE(pool->clone(blocks[1]).ok());
    pool->clone(blocks[1], *claim);
    pool->allocate(0, *claim);
    EXPECT_EQ(pool->bytes_available(), 0);
  }
  EXPECT_EQ(pool->n_available(0), 1);  // what the claim did not spend
  EXPECT_EQ(pool->stats().n_blocks_used, 9);
  // Bytes that their owner is about to release count; nobody else gets them in between.
  EXPECT_FALSE(pool->claim(4 * 4096, 2 * 4096).has_value());
  std::optional<BlockPool::Claim> claim = pool->claim(3 * 4096, 2 * 4096);
  ASSERT_TRUE(claim.has_value());
  EXPECT_EQ(pool->bytes_available(), 0);
  EXPECT_FALSE(pool->allocate(0).ok());
  pool->release(std::span(blocks).subspan(1, 2));
  EXPECT_FALSE(pool->allocate(0).ok());
  for (int i = 0; i < 3; ++i) pool->allocate(0, *claim);
  EXPECT_DEATH(pool->allocate(0, *claim), "no room");
}

TEST(BlockPool, ReferencesAndCopies) {
  const auto pool = make_pool(one_layer(64, DType::f16), kMiB);
  const BlockId block = pool->allocate(0).value();
  fill(*pool, block, 42);
  pool->mark_annotated(block);
  pool->mark_annotated(block);
  pool->bias(block)[15] = 2.5f;
  pool->pos(block)[15] = 99;
  EXPECT_EQ(pool->stats().bytes_used, 4096 + BlockPool::kAnnotationBytes);
  pool->add_reference(block);
  EXPECT_EQ(pool->n_references(block), 2);
  EXPECT_EQ(pool->stats().n_blocks_shared, 1);
  const BlockId copy = pool->clone(block).value();
  EXPECT_TRUE(is_filled(*pool, copy, 42));
  EXPECT_EQ(pool->bias(copy)[15], 2.5f);
  EXPECT_EQ(pool->pos(copy)[15], 99);
  EXPECT_EQ(pool->n_references(copy), 1);
  EXPECT_EQ(pool->stats().n_copies_on_write, 1);
  pool->release(block);
  EXPECT_EQ(pool->stats().n_blocks_shared, 0);
  pool->release(block);
  pool->release(copy);
  EXPECT_EQ(pool->stats().n_blocks_used, 0);
  EXPECT_EQ(pool->stats().bytes_used, 0);
  EXPECT_FALSE(pool->is_annotated(pool->allocate(0).value()));  // the flag of the slot's former life is gone
}

TEST(BlockPoolDeathTest, UseAfterReleaseStops) {
  const auto pool = make_pool(one_layer(64, DType::f16), kMiB);
  const BlockId block = pool->allocate(0).value();
  pool->release(block);
  EXPECT_DEATH(pool->release(block), "released");
  EXPECT_DEATH(pool->add_reference(block), "released");
  EXPECT_DEATH(pool->release(BlockId{}), "arena");
}

TEST(BlockPool, AnnotationsCostMemoryOnlyWhenMarked) {
  const auto pool = make_pool(one_layer(64, DType::f16), kMiB);
  const std::vector<BlockId> blocks = take(*pool, 40);  // 32 annotations lie on one page
  for (const BlockId block : blocks) fill(*pool, block, 1);
  EXPECT_FALSE(is_resident(pool->bias(blocks[0])));
  for (const size_t i : {1, 2}) {
    pool->mark_annotated(blocks[i]);
    std::memset(pool->bias(blocks[i]), 0, BlockPool::kAnnotationBytes);
  }
  EXPECT_TRUE(is_resident(pool->bias(blocks[0])));
  EXPECT_FALSE(is_resident(pool->bias(blocks[39])));
  pool->release(blocks[1]);
  EXPECT_TRUE(is_resident(pool->bias(blocks[0])));
  pool->release(blocks[2]);
  EXPECT_FALSE(is_resident(pool->bias(blocks[0])));
}

TEST(BlockPool, LayersOfOneShapeShareAnArena) {
  KvLayout layout{.layers = {{.n_heads = 2, .key_width = 64, .value_width = 64, .window = 0},
                             {},
                             {.n_heads = 1, .key_width = 128, .value_width = 64, .window = 0},
                             {.n_heads = 8, .key_width = 64, .value_width = 64, .window = 512}}};
  const auto pool = make_pool(layout, 10 * 4096);
  EXPECT_EQ(pool->arena_of_layer(0), 0);
  EXPECT_EQ(pool->arena_of_layer(1), -1);
  EXPECT_EQ(pool->arena_of_layer(2), 1);
  EXPECT_EQ(pool->arena_of_layer(3), 0);
  EXPECT_EQ(pool->block_bytes(1), 16 * (128 + 64) * 2);
  EXPECT_EQ(pool->stats().n_blocks_capacity, 6);
  // One budget for all arenas.
  EXPECT_EQ(pool->n_available(0), 10);
  ASSERT_TRUE(pool->allocate(1).ok());
  EXPECT_EQ(pool->n_available(0), 8);
  EXPECT_EQ(layout.bytes_per_token(), 2 * 256 + 384 + 8 * 256);
  EXPECT_EQ(layout.n_heads_total(), 11);
}

TEST(KvLayout, RefusesWhatItCannotHold) {
  const auto message = [](const KvLayout& layout) {
    const auto pool = BlockPool::create(layout, kMiB);
    EXPECT_FALSE(pool.ok());
    return pool.ok() ? "" : pool.error().message;
  };
  EXPECT_NE(message(one_layer(16, DType::q8_0)).find("16 is not a multiple of the 32"), std::string::npos);
  EXPECT_NE(message(one_layer(64, DType::q4_k)).find("cannot be kept"), std::string::npos);
  EXPECT_NE(message(one_layer(0, DType::f16)).find("width is 0"), std::string::npos);
  EXPECT_NE(message(one_layer(1 << 20, DType::f16)).find("width is 1048576"), std::string::npos);
  KvLayout bad = one_layer(64, DType::f16);
  bad.layers[0].n_heads = -1;
  EXPECT_NE(message(bad).find("-1 KV heads"), std::string::npos);
  bad = one_layer(64, DType::f16);
  bad.layers[0].window = -5;
  EXPECT_NE(message(bad).find("window is -5"), std::string::npos);
}

TEST(BlockPool, RefusesAbsurdBudgets) {
  EXPECT_FALSE(BlockPool::create(one_layer(64, DType::f16), -1).ok());
  const auto too_many = BlockPool::create(one_layer(64, DType::f16), int64_t{1} << 62);
  ASSERT_FALSE(too_many.ok());
  EXPECT_EQ(too_many.error().kind, ErrorKind::invalid_argument);
  // Fewer blocks than can be numbered, but more bytes than a process can address.
  KvLayout wide = one_layer(1 << 16, DType::f32);
  const auto too_wide = BlockPool::create(wide, int64_t{1} << 53);
  ASSERT_FALSE(too_wide.ok());
  EXPECT_EQ(too_wide.error().kind, ErrorKind::out_of_memory);
  const auto empty = make_pool(one_layer(64, DType::f16), 0);
  EXPECT_FALSE(empty->allocate(0).ok());
}

// Mixing a position with a row must not compile.
template <typename A, typename B>
concept Comparable = requires(A a, B b) {
  a < b;
};
template <typename A, typename B>
concept Subtractable = requires(A a, B b) {
  a - b;
};
static_assert(!std::is_convertible_v<Pos, Row> && !std::is_convertible_v<Row, Pos>);
static_assert(!std::is_convertible_v<int, Pos> && !std::is_convertible_v<int, Row> &&
              !std::is_convertible_v<Pos, int>);
static_assert(!std::is_constructible_v<Pos, Row> && !std::is_constructible_v<Row, Pos>);
static_assert(!std::is_assignable_v<Pos&, Row> && !std::is_assignable_v<Row&, Pos>);
static_assert(Comparable<Pos, Pos> && !Comparable<Pos, Row> && !Comparable<Pos, int>);
static_assert(Subtractable<Pos, Pos> && !Subtractable<Pos, Row>);

}  // namespace
}  // namespace sh::kv
