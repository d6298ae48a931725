// SPDX-License-Identifier: MIT
// A whole server with the scribe model on a free port, for tests.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "engine/engine.h"
#include "engine/scheduler.h"
#include "server/http_client.h"
#include "server/server.h"

namespace sh::server {

class RunningServer {
 public:
  /// Listens; `change` may edit the settings. The model is loaded by load().
  explicit RunningServer(const std::function<void(engine::ProgramParams&)>& change = {}) {
    params_.engine.model_path = std::string(SH_SOURCE_DIR) + "/models/scribe.gguf";
    params_.engine.model_alias = "scribe";
    params_.engine.n_ctx = 2048;
    params_.engine.n_parallel = 2;
    params_.server.port = 0;
    params_.server.has_metrics = true;
    params_.server.has_compact = true;
    params_.sampling.temperature = 0;
    params_.log_level = LogLevel::warning;
    if (change) change(params_);
    set_log_level(params_.log_level);
    auto server = Server::start(params_);
    SH_CHECK(server.ok(), "the server did not start");
    server_ = std::move(*server);
  }
  ~RunningServer() {
    server_->stop();
    scheduler_.reset();
  }
  RunningServer& load() {
    auto engine = engine::Engine::open(params_.engine);
    SH_CHECK(engine.ok(), engine.ok() ? "" : engine.error().message.c_str());
    engine_ = std::move(*engine);
    scheduler_ = std::make_unique<engine::Scheduler>(*engine_);
    server_->set_ready(*engine_, *scheduler_);
    return *this;
  }

  void stop() { server_->stop(); }

  int port() const { return server_->port(); }
  engine::Engine& engine() { return *engine_; }
  engine::Scheduler& scheduler() { return *scheduler_; }

  ClientResponse get(const std::string& target, const std::string& headers = "") {
    return Client(port()).request("GET", target, "", headers);
  }
  ClientResponse post(const std::string& target, const Json& body, const std::string& headers = "") {
    return Client(port()).request("POST", target, dump_json(body), headers);
  }
  ClientResponse post_text(const std::string& target, const std::string& body) {
    return Client(port()).request("POST", target, body);
  }
  /// The answer of a request that must succeed.
  Json ask(const std::string& target, const Json& body) {
    const ClientResponse response = post(target, body);
    EXPECT_EQ(response.status, 200) << response.body;
    return response.json();
  }

 private:
  engine::ProgramParams params_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<engine::Scheduler> scheduler_;
};

/// A document of the recall data with its questions.
struct RecallDocument {
  std::string context;
  std::vector<std::pair<std::string, std::string>> questions;  // question, answer
};
inline RecallDocument recall_document(const char* file, int number) {
  const auto text = read_file(std::string(SH_SOURCE_DIR) + "/models/recall/" + file);
  SH_CHECK(text.ok(), file);
  size_t begin = 0;
  for (int i = 0; i < number; ++i) begin = text->find('\n', begin) + 1;
  const auto json = parse_json(std::string_view(*text).substr(begin, text->find('\n', begin) - begin));
  SH_CHECK(json.ok(), file);
  RecallDocument document{.context = (*json)["context"].get<std::string>(), .questions = {}};
  for (const Json& q : (*json)["questions"])
    document.questions.emplace_back(q["q"].get<std::string>(), q["answer"].get<std::string>());
  return document;
}
inline std::string trimmed(std::string text) {
  text.erase(0, text.find_first_not_of(" \n"));
  text.erase(text.find_last_not_of(" \n") + 1);
  return text;
}
inline Json message(const char* role, const std::string& content) {
  return Json{{"role", role}, {"content", content}};
}

}  // namespace sh::server
