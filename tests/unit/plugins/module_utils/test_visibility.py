@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("busybox", "docker.io/library/busybox"),
        ("gpuops/workload:1", "docker.io/gpuops/workload:1"),
        ("docker.io/gpuops/workload:1", "docker.io/gpuops/workload:1"),
        ("localhost/a:1", "localhost/a:1"),
        ("registry:5000/a", "registry:5000/a"),
    ],
)
def test_containerd_is_given_the_name_with_its_registry(short, full):
    assert _visibility.full_name(short) == full
