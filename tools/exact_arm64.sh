#!/bin/bash
# Run the golden cases of precision `exact` on an emulated ARM64 processor: once with the compiled loops, once in plain
# torch. Needs Debian on x86-64 with python3 and pip; no root, nothing is installed outside .scratchlm/arm64 (1.5 GB).
# The first run downloads 300 MB and compiles under emulation, ten minutes in all; later ones take four.
#
#     tools/exact_arm64.sh [CASE]…      default: one case of every kind
set -euo pipefail
cd "$(dirname "$0")/.."

CASES=("$@")
[ $# -gt 0 ] || CASES=(operations last_bits pretrain_gpt2 spam_lora_all instruct_masked sampled_filtered)
FOLDER=$PWD/.scratchlm/arm64
SUITE=bookworm # its Python is 3.11
KEYS=/usr/share/keyrings/debian-archive-keyring.gpg
# PyPI's last wheel of torch for ARM64 without CUDA; the other packages have the versions of requirements.lock
TORCH=torch==2.8.0
PACKAGES="annotated-types filelock fsspec Jinja2 llvmlite MarkupSafe mpmath networkx numba numpy pyarrow pydantic
    pydantic_core PyYAML regex ruamel.yaml scipy sympy threadpoolctl tiktoken tqdm typing-inspection typing_extensions"
LIBRARIES="libc6 libstdc++6 libgcc-s1 libgomp1 zlib1g libffi8 libexpat1 liblzma5 libbz2-1.0 libcrypt1 libssl3 libuuid1
    libsqlite3-0 libpython3.11-minimal libpython3.11-stdlib python3.11-minimal"

fail() { echo "exact_arm64: $1" >&2; exit 1; }

unpack_debian() { # qemu for this machine and Python for the emulated one, by an apt with a state of its own
    command -v apt-get dpkg-deb >/dev/null || fail "needs Debian's apt-get and dpkg-deb"
    [ -e $KEYS ] || fail "$KEYS is missing; install debian-archive-keyring"
    mkdir -p "$FOLDER"/apt/{state/lists/partial,cache/archives/partial,debs}
    touch "$FOLDER/apt/status"
    cat > "$FOLDER/apt/sources.list" <<END
deb [signed-by=$KEYS] http://deb.debian.org/debian $SUITE main
END
    cat > "$FOLDER/apt/apt.conf" <<END
Dir::State "$FOLDER/apt/state";
Dir::State::status "$FOLDER/apt/status";
Dir::Cache "$FOLDER/apt/cache";
Dir::Etc::sourcelist "$FOLDER/apt/sources.list";
Dir::Etc::sourceparts "-";
APT::Architecture "amd64";
APT::Architectures {"amd64"; "arm64";};
APT::Sandbox::User "$(id -un)";
END
    export APT_CONFIG=$FOLDER/apt/apt.conf
    apt-get --quiet --quiet update
    (cd "$FOLDER/apt/debs" && apt-get --quiet --quiet download qemu-user-static:amd64 $(printf '%s:arm64 ' $LIBRARIES))
    for package in "$FOLDER"/apt/debs/*_amd64.deb; do dpkg-deb --extract "$package" "$FOLDER/qemu"; done
    for package in "$FOLDER"/apt/debs/*_arm64.deb; do dpkg-deb --extract "$package" "$FOLDER/debian"; done
}

install_wheels() {
    local pins
    pins=$(for name in $PACKAGES; do grep --ignore-case "^$name==" requirements.lock; done)
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$FOLDER/site" --only-binary :all: \
        --implementation cp --python-version 3.11 $(printf -- '--platform manylinux_2_%s_aarch64 ' 28 27 26 24 17) \
        --platform manylinux2014_aarch64 $TORCH $pins
}

# Made again when this script or the lock changes
STAMP=$(cat "$0" requirements.lock | sha256sum)
if [ "$(cat "$FOLDER/ready" 2>/dev/null)" != "$STAMP" ]; then
    [ "$(uname -m)" = x86_64 ] || fail "needs an x86-64 machine; on ARM64, make test does this without emulation"
    rm -rf "$FOLDER"
    unpack_debian
    install_wheels
    rm -rf "$FOLDER/apt"
    echo "$STAMP" > "$FOLDER/ready"
fi

run_golden() {
    PYTHONPATH=src:.:$FOLDER/site XDG_CACHE_HOME=$FOLDER/cache PYTHONDONTWRITEBYTECODE=1 \
        "$FOLDER/qemu/usr/bin/qemu-aarch64-static" -L "$FOLDER/debian" "$FOLDER/debian/usr/bin/python3.11" \
        -m tests.golden --once $(printf -- '--case %s ' "${CASES[@]}") "$@"
}

echo "Plain torch on an emulated ARM64 processor:"
run_golden --reference
echo "Compiled loops on an emulated ARM64 processor:"
run_golden
