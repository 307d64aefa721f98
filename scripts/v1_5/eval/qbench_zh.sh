#!/usr/bin/env bash
# qbench_zh.sh [dev|test] [arguments of run.sh behind NAME]: Q-Bench in Chinese, dev without either word.
split="质衡-问答-验证集"
case "${1:-}" in
dev) shift ;;
test)
    split="质衡-问答-测试集"
    shift
    ;;
esac
exec "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" qbench "$@" --split "$split"
