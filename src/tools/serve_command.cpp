// SPDX-License-Identifier: MIT
// shorthand serve: opens the port, loads the model, answers until SIGINT or SIGTERM.
#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <optional>
#include <thread>

#include "base/clock.h"
#include "base/log.h"
#include "engine/engine.h"
#include "engine/scheduler.h"
#include "server/server.h"
#include "tools/commands.h"
#include "tools/terminal.h"

namespace sh::tools {
namespace {

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

/// The model and its scheduler, loaded on a thread of their own while the port already answers.
struct Loading {
  std::unique_ptr<engine::Engine> engine;
  std::optional<Error> error;
  double seconds = 0;
};

void load(const engine::EngineOptions& options, Loading& loading) {
  const Stopwatch watch;
  Result<std::unique_ptr<engine::Engine>> opened = engine::Engine::open(options);
  loading.seconds = watch.seconds();
  if (opened.ok())
    loading.engine = std::move(*opened);
  else
    loading.error = opened.error();
  ::kill(::getpid(), SIGUSR1);  // wakes the main thread's sigwait
}

void print_welcome(const engine::Engine& engine, const std::string& url, const engine::ProgramParams& params,
                   double seconds) {
  log_opening(engine, 0);
  log_info("loaded in {:.2f} s", seconds);
  log_info(
      "try      curl {}/v1/chat/completions -d '{{\"messages\": [{{\"role\": \"user\", \"content\": "
      "\"Hello\"}}]}}'",
      url);
  log_info("         curl {}/compact -d '{{\"id_slot\": 0, \"method\": \"self_study\", \"ratio\": 4}}'{}", url,
           params.server.has_compact ? "" : "   (needs --endpoint-compact)");
  log_info("listening on {}", url);
}

/// A second signal ends the process at once, however long the first one's work takes.
void exit_on_next_signal() {
  std::thread([] {
    const sigset_t set = stop_signals();
    int signal = 0;
    sigwait(&set, &signal);
    std::_Exit(1);
  }).detach();
}

}  // namespace

int serve_command(Arguments args) {
  engine::ProgramParams params;
  if (const std::optional<int> code = read_params(engine::kServe, args, params)) return *code;
  if (params.engine.model_path.empty())
    return report_error({ErrorKind::invalid_argument, "no model: give one with -m FILE"});

  // Blocked before any thread starts, so that all inherit it and sigwait alone receives them.
  sigset_t waited = stop_signals();
  sigaddset(&waited, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &waited, nullptr);
  ::signal(SIGPIPE, SIG_IGN);

  Result<std::unique_ptr<server::Server>> started = server::Server::start(params);
  if (!started.ok()) return report_error(started.error());
  server::Server& server = **started;
  log_info("loading {} ({} answers 503 until it is there)", params.engine.model_path, server.url());

  Loading loading;
  std::thread loader([&] { load(params.engine, loading); });
  int signal = 0;
  sigwait(&waited, &signal);
  if (signal != SIGUSR1) std::_Exit(0);  // stopped while loading: nothing to save
  loader.join();
  if (loading.error) {
    server.stop();
    return report_error(*loading.error);
  }
  std::optional<engine::Scheduler> scheduler(*loading.engine);
  server.set_ready(*loading.engine, *scheduler);
  print_welcome(*loading.engine, server.url(), params, loading.seconds);

  do sigwait(&waited, &signal);
  while (signal == SIGUSR1);
  log_info("stopping; a second signal ends at once");
  exit_on_next_signal();
  server.stop();
  scheduler.reset();
  return 0;
}

}  // namespace sh::tools
