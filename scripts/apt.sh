#!/usr/bin/env bash
# Installs Debian packages that are missing: scripts/apt.sh qemu-utils …
# Needs root and apt-get; says so (status 3) where either is missing. Quiet when there is nothing to do.
set -euo pipefail

missing=()
for package in "$@"; do
  status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
  [[ $status == 'install ok installed' ]] || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

if ! command -v apt-get >/dev/null || [[ $(id -u) -ne 0 ]]; then
  echo "missing: ${missing[*]} (to install them: sudo apt-get install ${missing[*]})" >&2
  exit 3
fi

export DEBIAN_FRONTEND=noninteractive
install() {
  apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 "${missing[@]}" >/dev/null
}
# The lists may be there already, and fresh enough.
if ! install 2>/dev/null; then
  apt-get update -qq
  install
fi
echo "installed: ${missing[*]}"
