// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <set>
#include <thread>
#include <vector>

#include "base/json.h"
#include "base/machine.h"
#include "base/mapped_file.h"
#include "base/npy.h"
#include "base/output_path.h"
#include "base/rng.h"
#include "base/thread_pool.h"
#include "base/utf8.h"

namespace sh {
namespace {

TEST(ThreadPool, EveryTaskRunsOnceForAnyThreadCount) {
  for (int n_threads : {1, 2, 5}) {
    ThreadPool pool(n_threads);
    for (int64_t n_tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> hits(static_cast<size_t>(n_tasks));
      for (int repeat = 0; repeat < 20; ++repeat)
        pool.run(n_tasks, [&](int64_t task, int worker) {
          ASSERT_LT(worker, n_threads);
          hits[static_cast<size_t>(task)]++;
        });
      for (auto& hit : hits) EXPECT_EQ(hit.load(), 20);
    }
  }
}

TEST(ThreadPool, ManyShortLoopsLoseAndRepeatNothing) {
  ThreadPool pool(4);
  for (int64_t loop = 0; loop < 20000; ++loop) {
    const int64_t n_tasks = 2 + loop % 5;
    std::atomic<int64_t> sum{0};  // dies with the loop: a worker that came late would be caught by the sanitizers
    pool.run(n_tasks, [&](int64_t task, int) { sum += loop + task; });
    ASSERT_EQ(sum.load(), n_tasks * loop + n_tasks * (n_tasks - 1) / 2);
  }
}

TEST(ThreadPool, SleepsBetweenLoopsThatAreFarApart) {
  ThreadPool pool(4);
  pool.run(8, [](int64_t, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const std::clock_t begin = std::clock();  // of all threads
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(std::clock() - begin, CLOCKS_PER_SEC / 20) << "workers spin while nothing runs";
  std::atomic<int> n_run{0};
  pool.run(8, [&](int64_t, int) { ++n_run; });
  EXPECT_EQ(n_run.load(), 8);
}

TEST(ThreadPool, AWorkerBeginsWithItsShare) {
  ThreadPool pool(3);
  std::atomic<int> n_begun{0};
  std::vector<int> workers(6, -1);
  pool.run(6, [&](int64_t task, int worker) {
    workers[static_cast<size_t>(task)] = worker;
    if (task % 2 != 0) return;  // the first of each share waits for the others
    ++n_begun;
    while (n_begun < 3) std::this_thread::yield();
  });
  EXPECT_EQ(workers[0], 0);
  EXPECT_EQ(workers[2], 1);
  EXPECT_EQ(workers[4], 2);
}

TEST(ThreadPool, OthersTakeOverWhatIsLeftOfAShare) {
  ThreadPool pool(2);
  std::atomic<int> n_done{0};
  pool.run(20, [&](int64_t task, int) {
    if (task == 0)  // would never end if the other nine of its share waited for it
      while (n_done < 19) std::this_thread::yield();
    ++n_done;
  });
  EXPECT_EQ(n_done, 20);
}

TEST(ThreadPool, ANestedLoopRunsInPlace) {
  ThreadPool pool(2);
  std::atomic<int> inner{0};
  pool.run(4, [&](int64_t, int) { pool.run(3, [&](int64_t, int) { inner++; }); });
  EXPECT_EQ(inner.load(), 12);
}

TEST(Rng, DependsOnSeedAndStreamOnly) {
  Rng a(1, 2), b(1, 2), other_stream(1, 3), other_seed(2, 2);
  const uint64_t first = a.next_u64();
  EXPECT_EQ(first, b.next_u64());
  EXPECT_NE(first, other_stream.next_u64());
  EXPECT_NE(first, other_seed.next_u64());
}

TEST(Rng, MomentsOfUnitAndNormal) {
  Rng rng(7);
  double sum = 0, normal_sum = 0, normal_squares = 0;
  constexpr int n = 200000;
  for (int i = 0; i < n; ++i) {
    sum += rng.next_unit();
    const double z = rng.next_normal();
    normal_sum += z;
    normal_squares += z * z;
  }
  // Standard errors: 0.289/sqrt(n) = 6.5e-4, 1/sqrt(n) = 2.2e-3, sqrt(2/n) = 3.2e-3; five of each.
  EXPECT_NEAR(sum / n, 0.5, 3.3e-3);
  EXPECT_NEAR(normal_sum / n, 0.0, 1.1e-2);
  EXPECT_NEAR(normal_squares / n, 1.0, 1.6e-2);
}

TEST(Utf8, RoundTripAndInvalid) {
  for (uint32_t code : {0x24u, 0x7Fu, 0x80u, 0x7FFu, 0x800u, 0xFFFDu, 0x10000u, 0x10FFFFu}) {
    std::string text;
    append_utf8(text, code);
    const Utf8Char c = decode_utf8(text);
    EXPECT_TRUE(c.is_valid);
    EXPECT_EQ(c.code_point, code);
    EXPECT_EQ(static_cast<size_t>(c.n_bytes), text.size());
    for (size_t cut = 1; cut < text.size(); ++cut) EXPECT_EQ(incomplete_utf8_tail(text.substr(0, cut)), cut);
    EXPECT_EQ(incomplete_utf8_tail(text), 0u);
  }
  for (const char* bad : {"\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\x80", "\xE2\x28\xA1"}) EXPECT_FALSE(is_valid_utf8(bad));
}

TEST(Json, MalformedAndDeepAreErrors) {
  EXPECT_FALSE(parse_json("{\"a\": ").ok());
  EXPECT_FALSE(parse_json(std::string(10000, '[')).ok());
  const auto value = parse_json(R"({"b": 1, "a": "[[[\"["})");
  ASSERT_TRUE(value.ok());
  EXPECT_EQ(dump_json(*value), R"({"b":1,"a":"[[[\"["})");
}

TEST(Npy, RoundTrip) {
  Mat<float> m(3, 5);
  for (size_t i = 0; i < m.data.size(); ++i) m.data[i] = static_cast<float>(i) * 0.5f;
  const std::string path = testing::TempDir() + "round_trip.npy";
  ASSERT_TRUE(write_npy(path, m.view()).ok());
  const auto back = read_npy(path);
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->rows, 3);
  EXPECT_EQ(back->cols, 5);
  EXPECT_EQ(back->data, m.data);
}

TEST(MappedFile, ReleasedBytesComeBack) {
  const std::string path = testing::TempDir() + "/released.bin";
  const std::string content(100000, 'x');
  ASSERT_TRUE(write_file(path, content).ok());
  const MappedFile file = MappedFile::open(path).value();
  const auto is_whole = [&] {
    const auto bytes = file.bytes();
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()) == content;
  };
  EXPECT_TRUE(is_whole());
  file.release(file.bytes().subspan(10, 90000));
  EXPECT_TRUE(is_whole());
  // Bytes of another place stay as they are: dropping pages of the heap would make zeros of them.
  std::vector<std::byte> other(1 << 20, std::byte{7});
  file.release(other);
  EXPECT_EQ(other, std::vector<std::byte>(1 << 20, std::byte{7}));
}

TEST(WriteFile, LeavesLinksDevicesAndFoldersInPlace) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(testing::TempDir()) / ("write_file_" + std::to_string(getpid()));
  fs::create_directories(folder / "sub");
  const auto in = [&folder](const char* name) { return (folder / name).string(); };
  ASSERT_TRUE(write_file(in("sub/real"), std::string("old")).ok());
  fs::create_symlink("sub/real", folder / "link");
  fs::create_symlink("link", folder / "link2");
  ASSERT_TRUE(write_file(in("link2"), std::string("new")).ok());
  EXPECT_TRUE(fs::is_symlink(folder / "link") && fs::is_symlink(folder / "link2"));
  EXPECT_EQ(read_file(in("sub/real")).value(), "new");
  fs::create_symlink("later", folder / "dangling");
  ASSERT_TRUE(write_file(in("dangling"), std::string("made")).ok());
  EXPECT_TRUE(fs::is_symlink(folder / "dangling"));
  EXPECT_EQ(read_file(in("later")).value(), "made");

  ASSERT_EQ(mkfifo(in("pipe").c_str(), 0600), 0);
  const int reader = open(in("pipe").c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_TRUE(write_file(in("pipe"), std::string("through")).ok());
  char got[8] = {};
  EXPECT_EQ(read(reader, got, sizeof got), 7);
  EXPECT_STREQ(got, "through");
  close(reader);
  EXPECT_TRUE(fs::is_fifo(folder / "pipe"));

  fs::create_symlink("loop", folder / "loop");
  for (const char* name : {"sub", "loop", "missing/file"}) {
    const auto written = write_file(in(name), std::string("x"));
    ASSERT_FALSE(written.ok()) << name;
    EXPECT_NE(written.error().message.find(in(name)), std::string::npos) << written.error().message;
  }
  EXPECT_NE(write_file(in("missing/file"), std::string("x")).error().message.find("no folder"), std::string::npos);
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    EXPECT_EQ(entry.path().string().find(".part."), std::string::npos) << "nothing is left behind";
  fs::remove_all(folder);
}

TEST(WriteFile, AFullDeviceIsAnErrorAndStays) {
  namespace fs = std::filesystem;
  const std::string link = testing::TempDir() + fmt::format("full_{}", ::getpid());
  fs::create_symlink("/dev/full", link);
  for (const std::string& path : {std::string("/dev/full"), link}) {
    const auto written = write_file(path, "text");
    ASSERT_FALSE(written.ok()) << path;
    EXPECT_NE(written.error().message.find("No space left"), std::string::npos) << written.error().message;
    EXPECT_TRUE(fs::is_character_file("/dev/full"));
    EXPECT_TRUE(is_special_file(path));
  }
  EXPECT_TRUE(write_file("/dev/null", "text").ok());
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  fs::remove(link);
}

TEST(CheckWritable, KnowsBeforehandWhatWriteFileWouldSay) {
  const std::string folder = testing::TempDir();
  EXPECT_TRUE(check_writable(folder + "/new_file").ok());
  EXPECT_TRUE(check_writable("/dev/null").ok());
  EXPECT_FALSE(std::filesystem::exists(folder + "/new_file"));
  for (const std::string& path : {folder, folder + "/no/such/folder/file"}) {
    EXPECT_FALSE(check_writable(path).ok()) << path;
    EXPECT_FALSE(write_file(path, "text").ok()) << path;
  }
}

TEST(Machine, LastLevelCachesOfAllProcessorsAreCountedOnce) {
  namespace fs = std::filesystem;
  const fs::path root = testing::TempDir() + fmt::format("shorthand_cpus_{}", getpid());
  const auto add = [&](const char* cpu, const char* index, const char* level, const char* size,
                       const char* shared) {
    const fs::path cache = root / cpu / "cache" / index;
    fs::create_directories(cache);
    for (const auto& [name, value] : {std::pair("level", level), {"size", size}, {"shared_cpu_list", shared}})
      ASSERT_TRUE(write_file((cache / name).string(), std::string(value) + "\n").ok());
  };
  EXPECT_EQ(last_level_cache_bytes(root.string()), 0) << "unknown";
  fs::create_directories(root / "cpufreq");
  add("cpu0", "index0", "1", "32K", "0");
  EXPECT_EQ(last_level_cache_bytes(root.string()), 32 << 10);
  add("cpu0", "index3", "3", "1M", "0-1");
  add("cpu1", "index3", "3", "1M", "0-1");
  add("cpu2", "index2", "2", "512K", "2");
  EXPECT_EQ(last_level_cache_bytes(root.string()), 1 << 20);
  add("cpu2", "index3", "3", "2048K", "2");
  EXPECT_EQ(last_level_cache_bytes(root.string()), 3 << 20);
  fs::remove_all(root);
}

TEST(MappedFile, MissingFileIsNamed) {
  const auto file = MappedFile::open("/nonexistent/model.gguf");
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.error().kind, ErrorKind::not_found);
  EXPECT_NE(file.error().message.find("/nonexistent/model.gguf"), std::string::npos);
}

}  // namespace
}  // namespace sh
