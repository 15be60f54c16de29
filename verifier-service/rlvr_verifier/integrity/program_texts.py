"""Programs whose verdict is known, in each language: tables of the tests, constants, ones that leave, crash, hang or take memory.

    what it should do -> its text in the language -> a probe, or a part of the battery

Literals are written byte by byte, so that they mean the same in every language.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Texts:
    """What a battery needs in one language."""

    fence: str
    table: str
    """A program around `{entries}`, which are of the form of `entry`."""
    entry: str
    echo: str
    line: str
    """Prints `{text}`, a literal, as a line."""
    nothing: str
    leaves: str
    crashes: str
    hanging: Mapping[str, str]

    def table_of(self, outputs: Mapping[str, str]) -> str:
        """A right program by definition: the output of each input."""
        entries = [self.entry.replace("{input}", self.literal(one)).replace("{output}", self.literal(two)) for one, two in outputs.items()]
        return self.table.replace("{entries}", "\n".join(entries))

    def literal(self, text: str) -> str:
        """A string literal."""
        data = text.encode()
        if self.fence == "go":
            return '"' + "".join(f"\\x{byte:02x}" for byte in data) + '"'
        if self.fence == "javascript":
            return "Buffer.from('" + data.hex() + "','hex')"
        return '"' + "".join(f"\\{byte:03o}" for byte in data) + '"'


_C = Texts(
    fence="c",
    table="""#include <stdio.h>
#include <string.h>
static char in[1 << 21];
int main(void) {
    size_t n = fread(in, 1, sizeof in, stdin);
{entries}
    return 1;
}""",
    entry="    if (n == sizeof {input} - 1 && !memcmp(in, {input}, n)) { fwrite({output}, 1, sizeof {output} - 1, stdout); return 0; }",
    echo="#include <stdio.h>\nint main(void) { int c; while ((c = getchar()) != EOF) putchar(c); return 0; }",
    line="#include <stdio.h>\nint main(void) { puts({text}); return 0; }",
    nothing="int main(void) { return 0; }",
    leaves="#include <unistd.h>\nint main(void) { _exit(0); }",
    crashes="int main(void) { return *(volatile int *)0; }",
    hanging={
        "spins": "int main(void) { volatile int x = 1; while (x); }",
        "sleeps": "#include <unistd.h>\nint main(void) { for (;;) sleep(1000); }",
        "takes memory": "#include <stdlib.h>\n"
        "int main(void) { for (;;) { volatile char *p = (volatile char *)malloc(1 << 24); if (!p) return 1; "
        "for (int i = 0; i < 1 << 24; i += 4096) p[i] = 1; } }",
        "writes": '#include <stdio.h>\nint main(void) { for (;;) puts("x"); }',
        "recurses": "int f(volatile int *p) { volatile int x[64]; x[0] = *p; return f(x) + x[0]; }\n"
        "int main(void) { int x = 1; return f(&x); }",
        "includes itself": '#include __FILE__\n#include "/dev/zero"\nint main(void) { return 0; }',
        "a large array": "volatile char a[1 << 30] = {1};\nint main(void) { return a[0]; }",
    },
)
_CPP = Texts(**{
    **vars(_C), "fence": "cpp",
    "hanging": {
        **_C.hanging,
        "templates": "template <int N, int M> struct A { static const int v = A<N - 1, 2 * M>::v + A<N - 1, 2 * M + 1>::v; };\n"
        "template <int M> struct A<0, M> { static const int v = 1; };\nint main() { return A<28, 0>::v; }",
    },
})  # fmt: skip
_GO = Texts(
    fence="go",
    table="""package main
import ("io"; "os")
func main() {
    data, _ := io.ReadAll(os.Stdin)
    switch string(data) {
{entries}
    default: os.Exit(1)
    }
}""",
    entry="    case {input}: os.Stdout.WriteString({output})",
    echo='package main\nimport ("io"; "os")\nfunc main() { io.Copy(os.Stdout, os.Stdin) }',
    line='package main\nimport "os"\nfunc main() { os.Stdout.WriteString({text} + "\\n") }',
    nothing="package main\nfunc main() {}",
    leaves='package main\nimport "os"\nfunc main() { os.Exit(0) }',
    crashes='package main\nfunc main() { panic("x") }',
    hanging={
        "spins": "package main\nfunc main() { for {} }",
        "sleeps": 'package main\nimport "time"\nfunc main() { time.Sleep(time.Hour) }',
        "takes memory": "package main\nvar kept [][]byte\nfunc main() { for { b := make([]byte, 1<<24); for i := range b { b[i] = 1 }; "
        "kept = append(kept, b) } }",
        "writes": 'package main\nimport "os"\nfunc main() { for { os.Stdout.WriteString("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\\n") } }',
        "recurses": "package main\nfunc f(n int) int { return f(n+1) + n }\nfunc main() { println(f(0)) }",
    },
)
_JAVASCRIPT = Texts(
    fence="javascript",
    table="""const fs = require('fs'), data = fs.readFileSync(0);
const table = [
{entries}
];
const found = table.find(([input]) => input.equals(data));
if (found) process.stdout.write(found[1]); else process.exit(1);""",
    entry="[{input}, {output}],",
    echo="process.stdout.write(require('fs').readFileSync(0));",
    line="console.log(String({text}));",
    nothing=";",
    leaves="process.exit(0);",
    crashes="throw new Error('x');",
    hanging={
        "spins": "for (;;);",
        "sleeps": "setInterval(() => {}, 1e9);",
        "takes memory": "const a = []; for (;;) a.push(new Array(1 << 20).fill(a.length));",
        "writes": "const fs = require('fs'); for (;;) fs.writeSync(1, 'x'.repeat(65536));",
        "recurses": "const f = n => f(n + 1) + 1; f(0);",
        "a pattern": "/(a+)+$/.test('a'.repeat(50) + 'b');",
    },
)
TEXTS: Mapping[str, Texts] = {"c": _C, "cpp": _CPP, "go": _GO, "javascript": _JAVASCRIPT}
"""By language; those of Python are in `code_probes`."""
