package bpf

// Objects and the Go beside them are committed: go build needs no clang. To make them again takes clang-14, llvm-14 and
// libbpf-dev of Debian 12, whose output is the same byte for byte.
//
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -go-package bpf -no-global-types level level.bpf.c -- -O2 -mcpu=v2 -Wall -Werror -Iheaders
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -go-package bpf -no-global-types sysctl sysctl.bpf.c -- -O2 -mcpu=v2 -Wall -Werror -Iheaders
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -go-package bpf -no-global-types exit exit.bpf.c -- -O2 -mcpu=v2 -Wall -Werror -Iheaders
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -go-package bpf -no-global-types oom oom.bpf.c -- -O2 -mcpu=v2 -Wall -Werror -Iheaders
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -go-package bpf -no-global-types signal signal.bpf.c -- -O2 -mcpu=v2 -Wall -Werror -Iheaders
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -go-package bpf -no-global-types hang hang.bpf.c -- -O2 -mcpu=v2 -Wall -Werror -Iheaders
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -go-package bpf -no-global-types clock clock.bpf.c -- -O2 -mcpu=v2 -Wall -Werror -Iheaders
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -go-package bpf -no-global-types census census.bpf.c -- -O2 -mcpu=v2 -Wall -Werror -Iheaders
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -go-package bpf -no-global-types tcp tcp.bpf.c -- -O2 -mcpu=v2 -Wall -Werror -Iheaders
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -go-package bpf -no-global-types sockets sockets.bpf.c -- -O2 -mcpu=v2 -Wall -Werror -Iheaders
