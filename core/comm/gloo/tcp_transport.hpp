#pragma once
#include <filesystem>
#include <memory>
#include <string>

#include <meshstage/core/comm/transport.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

struct TcpTransportOptions {
  /// Address or host name to listen on, at which the other ranks reach this one. Empty: loopback if
  /// `single_host`; else this host's name, or where that means loopback (as Debian has it), the
  /// address of the first network interface that is up.
  std::string host;
  bool single_host = true;
  LinkOptions links;
  /// The file libmeshstage_gloo.so, or the folder it is in. Empty: the module is sought (see
  /// gloo_module_table()).
  std::filesystem::path gloo_module;
};

/// Where other hosts reach this one if TcpTransportOptions::host is empty. Asks the resolver of
/// host names. Throws InvalidArgument, naming MESHSTAGE_HOST, if there is no such address, and
/// IoError.
[[nodiscard]] MESHSTAGE_API std::string address_for_other_hosts();

/// The transport for ranks that are processes: control messages go over sockets of our own
/// (socket/links.hpp), bulk data over Gloo (gloo/group.hpp). The first group that has a peer opens
/// the Gloo module, so a job of one rank needs none.
/// Throws InvalidArgument, naming MESHSTAGE_HOST, if the host has no address here.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<Transport> make_tcp_transport(
    TcpTransportOptions options);

}  // namespace meshstage
