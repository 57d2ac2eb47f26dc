// SPDX-License-Identifier: Apache-2.0
//! Makes the bindings and compiles the shim, against the libdpdk that pkg-config finds.

use std::env;
use std::path::{Path, PathBuf};

/// What `plinth-dpdk` calls. A function that is not here does not exist for Rust.
const FUNCTIONS: &[&str] = &[
    "plinth_.*",
    "rte_eal_get_runtime_dir",
    "rte_eal_has_hugepages",
    "rte_eal_hotplug_add",
    "rte_eal_hotplug_remove",
    "rte_eal_init",
    "rte_eth_dev_adjust_nb_rx_tx_desc",
    "rte_eth_dev_close",
    "rte_eth_dev_configure",
    "rte_eth_dev_get_mtu",
    "rte_eth_dev_get_name_by_port",
    "rte_eth_dev_get_port_by_name",
    "rte_eth_dev_info_get",
    "rte_eth_dev_set_mtu",
    "rte_eth_dev_socket_id",
    "rte_eth_dev_start",
    "rte_eth_dev_stop",
    "rte_eth_link_get_nowait",
    "rte_eth_macaddr_get",
    "rte_eth_promiscuous_enable",
    "rte_eth_rx_queue_setup",
    "rte_eth_stats_get",
    "rte_eth_tx_queue_setup",
    "rte_log_set_global_level",
    "rte_openlog_stream",
    "rte_mempool_avail_count",
    "rte_pktmbuf_pool_create",
    "rte_strerror",
    "rte_thread_register",
    "rte_thread_unregister",
];

/// Constants, which C has as macros.
const CONSTANTS: &[&str] = &[
    "RTE_ETH_LINK_UP",
    "RTE_ETH_NAME_MAX_LEN",
    "RTE_LOG_.*",
    "RTE_MBUF_DEFAULT_BUF_SIZE",
    "RTE_PKTMBUF_HEADROOM",
    "RTE_VER_.*",
];

/// Packed and aligned at once, which Rust cannot say (E0588). They are reached by pointer only.
const OPAQUE: &[&str] = &["rte_arp_.*", "rte_gtp_.*", "rte_l2tpv2_.*", "rte_ecpri_.*"];

fn main() {
    for file in ["wrapper.h", "shim.c", "build.rs"] {
        println!("cargo::rerun-if-changed={file}");
    }
    let dpdk = pkg_config::Config::new().atleast_version("22.11").probe("libdpdk").unwrap_or_else(
        |error| panic!("DPDK 22.11 or newer is needed (Debian: apt install libdpdk-dev): {error}"),
    );
    let flags = compiler_flags();
    let mut shim = cc::Build::new();
    shim.file("shim.c").opt_level(3).warnings(false);
    for flag in &flags {
        shim.flag(flag);
    }
    shim.includes(&dpdk.include_paths).compile("plinth_dpdk_shim");

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    bindings(&dpdk.include_paths, &flags)
        .write_to_file(out.join("bindings.rs"))
        .expect("OUT_DIR can be written");
}

/// The flags that pkg-config does not sort into include paths: the forced header and the
/// instruction set that DPDK's inline functions need.
fn compiler_flags() -> Vec<String> {
    let output = std::process::Command::new("pkg-config")
        .args(["--cflags-only-other", "libdpdk"])
        .output()
        .expect("pkg-config was found a moment ago");
    let text = String::from_utf8(output.stdout).expect("compiler flags are ASCII");
    text.split_whitespace().map(str::to_owned).collect()
}

fn bindings(include_paths: &[PathBuf], flags: &[String]) -> bindgen::Bindings {
    let include = |path: &PathBuf| format!("-I{}", Path::display(path));
    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(include_paths.iter().map(include))
        .clang_args(flags)
        .allowlist_recursively(true)
        // A variadic function with a `va_list`, whose type differs between compilers.
        .blocklist_function("rte_vlog")
        .blocklist_type("va_list")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
        .generate_comments(false)
        .layout_tests(false)
        .merge_extern_blocks(true);
    for name in FUNCTIONS {
        builder = builder.allowlist_function(name);
    }
    for name in CONSTANTS {
        builder = builder.allowlist_var(name);
    }
    for name in OPAQUE {
        builder = builder.opaque_type(name);
    }
    builder.generate().expect("the headers of a DPDK that pkg-config accepted are valid C")
}
