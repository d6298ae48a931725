// SPDX-License-Identifier: MIT
// Attention of a batch over paged caches. The query rows of one KV head are cut into tiles; a tile reads each
// block once for all of its queries that hold it. Long caches are cut into segments of a fixed number of blocks
// whose results are merged in order, always by the same arithmetic: whether segments run one after another or in
// parallel, and which queries share a tile, changes no bit.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "ops/ops.h"
#include "ops/rows.h"

namespace sh::ops {

namespace {

// Query rows of a tile. Each decoded row of the cache is used this many times; with 64 a prefill of 4096 tokens took
// 5 % longer. Queries, outputs and scores of 128 rows of 128 floats are 300 KB of the second-level cache.
constexpr int64_t kTileRows = 128;
// Blocks of a segment: 2048 rows, some 100 us of work for one decoded token, far above the cost of a task.
constexpr int64_t kSegmentBlocks = 128;
static_assert(kSegmentBlocks % kernels::kStepBlocks == 0);
// Partial results of parallel segments may take this much; above it a tile walks its segments in order, which only
// wide prefills reach, and they have tiles enough.
constexpr int64_t kMaxPartialFloats = int64_t{16} << 20;
// Tasks a worker should get at least, so that uneven ones even out.
constexpr int64_t kTasksPerWorker = 3;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// Neighbouring tokens of a tile that belong to one sequence.
struct Group {
  const kv::HeadCache* cache;
  int32_t query_begin, query_end;  // rows of the tile
  int32_t lowest_pos, highest_pos;
};

/// How the batch is cut; all counts but group and segments may depend on the number of threads, and no result
/// depends on them.
struct Plan {
  kv::LayerLayout shape;
  int64_t n_tokens;
  int64_t group;  // query heads of one KV head
  int64_t tile_tokens;
  int64_t tile_rows;  // tile_tokens * group
  int64_t n_tiles;
  int64_t n_segments;  // of the longest head; 1 in a layer with a window, where it would depend on how many blocks
                       // were dropped
  bool splits_segments;  // segments are tasks of their own
};

/// Scratch of one worker, in floats.
struct TileScratch {
  float* queries;      // [tile_rows, key_width]
  float* segment_out;  // [tile_rows, value_width]
  float* out;          // [tile_rows, value_width]
  float* segment_lse;  // [tile_rows]
  float* sum;          // [tile_rows]
  float* lse;          // [tile_rows]
  int32_t* query_pos;  // [tile_rows]
  float* kernel;
};

/// Floats of [tile_rows, width], rounded up so that each part begins on a cache line.
int64_t part_floats(int64_t n) {
  return (n + 15) / 16 * 16;
}

int64_t scratch_floats(const Plan& plan) {
  return part_floats(plan.tile_rows * plan.shape.key_width) +
         2 * part_floats(plan.tile_rows * plan.shape.value_width) + 4 * part_floats(plan.tile_rows) +
         kernels::attend_scratch_floats(static_cast<int32_t>(plan.tile_rows), plan.shape.key_width,
                                        plan.shape.value_width);
}

TileScratch cut_scratch(const Plan& plan, float* memory) {
  const auto take = [&memory](int64_t n) {
    float* part = memory;
    memory += part_floats(n);
    return part;
  };
  TileScratch scratch;
  scratch.queries = take(plan.tile_rows * plan.shape.key_width);
  scratch.segment_out = take(plan.tile_rows * plan.shape.value_width);
  scratch.out = take(plan.tile_rows * plan.shape.value_width);
  scratch.segment_lse = take(plan.tile_rows);
  scratch.sum = take(plan.tile_rows);
  scratch.lse = take(plan.tile_rows);
  scratch.query_pos = reinterpret_cast<int32_t*>(take(plan.tile_rows));
  scratch.kernel = memory;
  return scratch;
}

/// One tile of one KV head: its queries gathered, its sequences, and its merged result so far.
class Tile {
 public:
  Tile(const OpContext& ctx, const AttendArgs& args, const Plan& plan, int64_t head, int64_t tile,
       const TileScratch& scratch)
      : ctx_(ctx),
        args_(args),
        plan_(plan),
        scratch_(scratch),
        head_(head),
        first_token_(tile * plan.tile_tokens) {
    const int64_t end_token = std::min(plan.n_tokens, first_token_ + plan.tile_tokens);
    n_rows_ = (end_token - first_token_) * plan.group;
    for (int64_t token = first_token_; token < end_token; ++token) add_token(token);
  }

  int64_t n_rows() const { return n_rows_; }
  void gather_queries();
  /// Runs the kernel over the blocks of one segment. Returns false, and leaves out alone, when the tile sees none
  /// of them.
  bool run_segment(int64_t segment, std::vector<kernels::KvBlockView>& blocks, float* out, float* lse) const;
  void begin_merge();
  void merge(const float* segment_out, const float* segment_lse);
  void write_result();

 private:
  void add_token(int64_t token);
  bool sees(const Group& group, const kv::BlockEntry& entry, kv::BlockPool& pool) const;
  void list_blocks(int64_t segment, std::vector<kernels::KvBlockView>& blocks) const;

  const OpContext& ctx_;
  const AttendArgs& args_;
  const Plan& plan_;
  TileScratch scratch_;
  int64_t head_;
  int64_t first_token_;
  int64_t n_rows_;
  int64_t n_groups_ = 0;
  std::array<Group, kTileRows> groups_;
};

void Tile::add_token(int64_t token) {
  const kv::HeadCache* cache =
      &args_.sequences[static_cast<size_t>(token)]->head(args_.layer, static_cast<int32_t>(head_));
  const int32_t pos = args_.pos[static_cast<size_t>(token)].value;
  const int32_t row = static_cast<int32_t>((token - first_token_) * plan_.group);
  std::fill_n(scratch_.query_pos + row, plan_.group, pos);
  if (n_groups_ == 0 || groups_[static_cast<size_t>(n_groups_ - 1)].cache != cache)
    groups_[static_cast<size_t>(n_groups_++)] = Group{cache, row, row, pos, pos};
  Group& group = groups_[static_cast<size_t>(n_groups_ - 1)];
  group.query_end = row + static_cast<int32_t>(plan_.group);
  group.lowest_pos = std::min(group.lowest_pos, pos);
  group.highest_pos = std::max(group.highest_pos, pos);
}

void Tile::gather_queries() {
  const int64_t n = plan_.group * plan_.shape.key_width;
  for (int64_t row = 0; row < n_rows_; row += plan_.group)
    std::memcpy(scratch_.queries + row * plan_.shape.key_width,
                args_.queries.row(first_token_ + row / plan_.group) + head_ * n,
                static_cast<size_t>(n) * sizeof(float));
}

/// Whether any query of the group may see a row of the block.
bool Tile::sees(const Group& group, const kv::BlockEntry& entry, kv::BlockPool& pool) const {
  if (entry.n_rows == 0 || entry.first_pos.value > group.highest_pos) return false;
  if (plan_.shape.window == 0) return true;
  const kv::Pos last_pos = kv::pos_of_row(pool, entry, entry.n_rows - 1);
  return group.lowest_pos - int64_t{last_pos.value} < plan_.shape.window;
}

/// The blocks of a segment, index by index; groups that hold the same block at an index share one view.
void Tile::list_blocks(int64_t segment, std::vector<kernels::KvBlockView>& blocks) const {
  blocks.clear();
  kv::BlockPool& pool = args_.sequences[0]->pool();
  size_t end_block = 0;
  for (int64_t i = 0; i < n_groups_; ++i)
    end_block = std::max(end_block, groups_[static_cast<size_t>(i)].cache->blocks.size());
  size_t first_block = 0;
  if (plan_.n_segments > 1) {
    first_block = static_cast<size_t>(segment * kSegmentBlocks);
    end_block = std::min(end_block, first_block + kSegmentBlocks);
  }
  // Steps of the softmax go by a block's index, so that they are the same for every query that holds it; segments
  // are whole steps. With a window, where the index depends on how many blocks were dropped, every block is its
  // own.
  const size_t places = plan_.shape.window > 0 ? kernels::kStepBlocks : 1;
  for (size_t index = first_block; index < end_block; ++index) {
    const kv::BlockEntry* shared = nullptr;  // the entry that the last view of this index was made from
    for (int64_t i = 0; i < n_groups_; ++i) {
      const Group& group = groups_[static_cast<size_t>(i)];
      const kv::BlockEntry* entry = index < group.cache->blocks.size() ? &group.cache->blocks[index] : nullptr;
      if (entry == nullptr || !sees(group, *entry, pool)) {
        shared = nullptr;
        continue;
      }
      if (shared != nullptr && shared->block == entry->block && shared->n_rows == entry->n_rows) {
        blocks.back().query_end = group.query_end;
        continue;
      }
      shared = entry;
      kernels::KvBlockView view = kv::block_view(pool, *entry);
      view.query_begin = group.query_begin;
      view.query_end = group.query_end;
      view.place = static_cast<int32_t>((index - first_block) * places);
      blocks.push_back(view);
    }
  }
}

bool Tile::run_segment(int64_t segment, std::vector<kernels::KvBlockView>& blocks, float* out, float* lse) const {
  list_blocks(segment, blocks);
  if (blocks.empty()) {
    std::fill_n(lse, n_rows_, kMinusInfinity);
    return false;
  }
  const kv::KvLayout& layout = args_.sequences[0]->pool().layout();
  ctx_.kernels->attend(kernels::AttendTile{
      .key_type = layout.key_type,
      .value_type = layout.value_type,
      .key_width = plan_.shape.key_width,
      .value_width = plan_.shape.value_width,
      .n_queries = static_cast<int32_t>(n_rows_),
      .queries = scratch_.queries,
      .query_stride = plan_.shape.key_width,
      .query_pos = scratch_.query_pos,
      .scale = args_.scale,
      .softcap = args_.softcap,
      .window = plan_.shape.window,
      .blocks = blocks,
      .out = out,
      .out_stride = plan_.shape.value_width,
      .lse = lse,
      .scratch = scratch_.kernel,
  });
  return true;
}

void Tile::begin_merge() {
  std::fill_n(scratch_.lse, n_rows_, kMinusInfinity);
}

/// Adds a segment to the running result: out is Σ exp(lse_s - m) out_s, sum is Σ exp(lse_s - m), with m in
/// scratch_.lse. The first segment of a query that has rows is taken as it is, so that a query with one segment
/// gets the kernel's own bits.
void Tile::merge(const float* segment_out, const float* segment_lse) {
  const int64_t width = plan_.shape.value_width;
  for (int64_t row = 0; row < n_rows_; ++row) {
    if (segment_lse[row] == kMinusInfinity) continue;
    const float* from = segment_out + row * width;
    float* to = scratch_.out + row * width;
    if (scratch_.lse[row] == kMinusInfinity) {
      std::copy_n(from, width, to);
      scratch_.lse[row] = segment_lse[row];
      scratch_.sum[row] = 1.0f;
      continue;
    }
    const float highest = std::max(scratch_.lse[row], segment_lse[row]);
    const float keep = std::exp(scratch_.lse[row] - highest);
    const float add = std::exp(segment_lse[row] - highest);
    for (int64_t i = 0; i < width; ++i) to[i] = to[i] * keep + from[i] * add;
    scratch_.sum[row] = scratch_.sum[row] * keep + add;
    scratch_.lse[row] = highest;
  }
}

void Tile::write_result() {
  const int64_t width = plan_.shape.value_width;
  for (int64_t row = 0; row < n_rows_; ++row) {
    const int64_t token = first_token_ + row / plan_.group;
    const int64_t query_head = head_ * plan_.group + row % plan_.group;
    float* out = args_.out.row(token) + query_head * width;
    const bool sees_rows = scratch_.lse[row] != kMinusInfinity;
    if (sees_rows) {
      const float inverse = 1.0f / scratch_.sum[row];
      const float* from = scratch_.out + row * width;
      for (int64_t i = 0; i < width; ++i) out[i] = from[i] * inverse;
    } else {
      std::fill_n(out, width, 0.0f);
    }
    if (args_.lse.data != nullptr)
      args_.lse(token, query_head) = sees_rows ? scratch_.lse[row] + std::log(scratch_.sum[row]) : kMinusInfinity;
  }
}

Plan make_plan(const OpContext& ctx, const AttendArgs& args) {
  Plan plan;
  plan.n_tokens = args.queries.rows;
  const kv::BlockPool& pool = args.sequences[0]->pool();
  SH_CHECK(args.layer >= 0 && args.layer < static_cast<int32_t>(pool.layout().layers.size()), "no such layer");
  plan.shape = pool.layout().layers[static_cast<size_t>(args.layer)];
  const int64_t n_kv_heads = plan.shape.n_heads;
  SH_CHECK(n_kv_heads > 0 && args.n_heads % n_kv_heads == 0,
           "query heads must be a multiple of the layer's KV heads");
  SH_CHECK(args.queries.cols == int64_t{args.n_heads} * plan.shape.key_width,
           "queries do not have the layer's shape");
  SH_CHECK(args.out.rows == plan.n_tokens && args.out.cols == int64_t{args.n_heads} * plan.shape.value_width,
           "the output does not have the layer's shape");
  plan.group = args.n_heads / n_kv_heads;
  const int64_t n_tasks_wanted = ctx.pool->n_threads() == 1 ? 1 : kTasksPerWorker * ctx.pool->n_threads();
  plan.tile_tokens = std::clamp<int64_t>(plan.n_tokens * n_kv_heads / n_tasks_wanted, 1,
                                         std::max<int64_t>(1, kTileRows / plan.group));
  plan.tile_rows = plan.tile_tokens * plan.group;
  plan.n_tiles = (plan.n_tokens + plan.tile_tokens - 1) / plan.tile_tokens;
  size_t n_blocks = 1;
  const kv::SequenceCache* last = nullptr;
  for (const kv::SequenceCache* sequence : args.sequences) {
    if (sequence == last) continue;
    last = sequence;
    SH_CHECK(&sequence->pool() == &pool, "sequences of one batch must share a pool");
    for (int32_t head = 0; head < n_kv_heads; ++head)
      n_blocks = std::max(n_blocks, sequence->head(args.layer, head).blocks.size());
  }
  plan.n_segments =
      plan.shape.window > 0 ? 1 : (static_cast<int64_t>(n_blocks) + kSegmentBlocks - 1) / kSegmentBlocks;
  const int64_t n_partial =
      n_kv_heads * plan.n_tiles * plan.n_segments * plan.tile_rows * (plan.shape.value_width + 1);
  plan.splits_segments = plan.n_segments > 1 && ctx.pool->n_threads() > 1 &&
                         n_kv_heads * plan.n_tiles < n_tasks_wanted && n_partial <= kMaxPartialFloats;
  return plan;
}

/// Every segment a task, then every tile merges its own.
void attend_split(OpContext& ctx, const AttendArgs& args, const Plan& plan) {
  const int64_t width = plan.shape.value_width;
  const int64_t partial_floats = plan.tile_rows * (width + 1);
  const int64_t n_tile_tasks = plan.shape.n_heads * plan.n_tiles;
  float* partial = ctx.partial.grow(static_cast<size_t>(n_tile_tasks * plan.n_segments * partial_floats));
  const auto scratch_of = [&](int worker) { return cut_scratch(plan, worker_scratch(ctx, worker)); };
  ctx.pool->run(n_tile_tasks * plan.n_segments, [&](int64_t task, int worker) {
    const int64_t tile_task = task / plan.n_segments;
    Tile tile(ctx, args, plan, tile_task / plan.n_tiles, tile_task % plan.n_tiles, scratch_of(worker));
    float* out = partial + task * partial_floats;
    tile.gather_queries();
    tile.run_segment(task % plan.n_segments, ctx.worker_blocks[static_cast<size_t>(worker)], out,
                     out + plan.tile_rows * width);
  });
  ctx.pool->run(n_tile_tasks, [&](int64_t task, int worker) {
    Tile tile(ctx, args, plan, task / plan.n_tiles, task % plan.n_tiles, scratch_of(worker));
    tile.begin_merge();
    for (int64_t segment = 0; segment < plan.n_segments; ++segment) {
      const float* out = partial + (task * plan.n_segments + segment) * partial_floats;
      tile.merge(out, out + plan.tile_rows * width);
    }
    tile.write_result();
  });
}

void attend_in_order(OpContext& ctx, const AttendArgs& args, const Plan& plan) {
  ctx.pool->run(plan.shape.n_heads * plan.n_tiles, [&](int64_t task, int worker) {
    const TileScratch scratch = cut_scratch(plan, worker_scratch(ctx, worker));
    Tile tile(ctx, args, plan, task / plan.n_tiles, task % plan.n_tiles, scratch);
    tile.gather_queries();
    tile.begin_merge();
    for (int64_t segment = 0; segment < plan.n_segments; ++segment) {
      if (tile.run_segment(segment, ctx.worker_blocks[static_cast<size_t>(worker)], scratch.segment_out,
                           scratch.segment_lse))
        tile.merge(scratch.segment_out, scratch.segment_lse);
    }
    tile.write_result();
  });
}

}  // namespace

void attend(OpContext& ctx, const AttendArgs& args) {
  SH_CHECK(static_cast<int64_t>(args.pos.size()) == args.queries.rows &&
               static_cast<int64_t>(args.sequences.size()) == args.queries.rows,
           "every query needs a position and a sequence");
  if (args.queries.rows == 0) return;
  const Plan plan = make_plan(ctx, args);
  const size_t n_workers = static_cast<size_t>(ctx.pool->n_threads());
  if (ctx.worker_blocks.size() < n_workers) ctx.worker_blocks.resize(n_workers);
  grow_worker_scratch(ctx, scratch_floats(plan));
  if (plan.splits_segments)
    attend_split(ctx, args, plan);
  else
    attend_in_order(ctx, args, plan);
}

}  // namespace sh::ops
