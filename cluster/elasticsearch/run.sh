#!/usr/bin/env bash
# A development Elasticsearch on 127.0.0.1, without security. Production names a cluster by URL instead.
#   run.sh DATA_FOLDER PORT [setting=value ...]    runs until stopped, building itself on first use
#   run.sh --build                                 builds only
# Needs a JDK of version 21 or newer (JAVA_HOME, PATH or the usual folders) and Maven for the build.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home="$here/target/home"
minimum=21

fail() { echo "elasticsearch: $*" >&2; exit 3; }

java_version() { "$1/bin/java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -1; }

find_jdk() {
  local candidate version on_path
  on_path=$(command -v javac || true)
  for candidate in "${JAVA_HOME:-}" "${on_path:+$(dirname "$(dirname "$(readlink -f "$on_path")")")}" \
      /usr/lib/jvm/* /usr/local/*jdk* /opt/*jdk* "$HOME"/.sdkman/candidates/java/* /Library/Java/JavaVirtualMachines/*/Contents/Home; do
    [ -x "$candidate/bin/javac" ] && [ -x "$candidate/bin/java" ] || continue
    version=$(java_version "$candidate")
    if [ "${version:-0}" -ge "$minimum" ]; then echo "$candidate"; return; fi
  done
  fail "no JDK of version $minimum or newer found: install one, or set JAVA_HOME"
}

build() {
  command -v mvn > /dev/null || fail "Maven (mvn) not found: install it to build the development node"
  mvn -q -B -f "$here/pom.xml" package || fail "the build failed; its output is above"
  touch "$home/.complete"
}

JAVA_HOME=$(find_jdk)
export JAVA_HOME
[ -e "$home/.complete" ] && [ -z "$(find "$here/pom.xml" "$here/src" -newer "$home/.complete")" ] || build
[ "${1:-}" = "--build" ] && exit 0
[ $# -ge 2 ] || fail "usage: run.sh DATA_FOLDER PORT [setting=value ...]"
data=$1 port=$2
shift 2
exec "$JAVA_HOME/bin/java" -Xms512m -Xmx"${ELASTICSEARCH_HEAP:-1g}" -XX:+ExitOnOutOfMemoryError \
  --add-modules jdk.incubator.vector --enable-native-access=ALL-UNNAMED \
  -cp "$home/lib/*" remembrandt.node.DevelopmentNode "$home" "$data" "$port" "$@"
