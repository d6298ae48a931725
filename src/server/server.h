// SPDX-License-Identifier: MIT
// The HTTP server of one model: opens at once, answers 503 until the model is there.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "engine/params.h"
#include "engine/scheduler.h"

namespace sh::server {

class Server {
 public:
  /// Listens from now on. Errors: io (address in use, unknown host).
  static Result<std::unique_ptr<Server>> start(engine::ProgramParams params);
  ~Server();

  /// From now on requests are answered. Both must live until stop(), and the scheduler must be gone before the
  /// Server is.
  void set_ready(engine::Engine& engine, engine::Scheduler& scheduler);
  int port() const;
  std::string url() const;
  /// Accepts no more and lets running requests end for a few seconds, then hangs up.
  void stop();

 private:
  Server();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sh::server
