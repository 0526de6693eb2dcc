# The scripts beside it read this first: it names their result, makes a scratch folder, and prints what a bench measured.

cd "$(dirname "$0")/.."
mkdir -p benchmarks/results
result=benchmarks/results/$(basename "$0" .sh)_$(uname -n)_$(date +%Y-%m-%d).md
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

measured() { # the table of a bench and what its --json wrote
    printf '```\n'
    cat "$scratch/table.txt"
    printf '```\n\n<details><summary>Every figure, machine, versions and command</summary>\n\n```json\n'
    cat "$scratch/result.json"
    printf '```\n</details>\n'
}

keep() { # the result, once it is whole
    mv "$scratch/result.md" "$result"
    echo "$result"
}
