package config

import (
	"maps"
	"testing"
)

func TestPool(t *testing.T) {
	load := func(pool, memory string) (Config, error) {
		env := map[string]string{"HOME": t.TempDir(), "BANGER_CONFIG": "/dev/null", "BANGER_POOL": pool, "BANGER_POOL_MEMORY": memory}
		return Load(func(key string) string { return env[key] }, 1000, nil)
	}
	c, err := load("debian=2 tiny=1", "3G")
	if err != nil || !maps.Equal(c.Pool, map[string]int{"debian": 2, "tiny": 1}) || c.PoolBytes != 3<<30 {
		t.Errorf("%v, %d, %v", c.Pool, c.PoolBytes, err)
	}
	if c, err := load("", ""); err != nil || len(c.Pool) != 0 || c.PoolBytes != 1<<30 {
		t.Errorf("by default: %v, %d, %v", c.Pool, c.PoolBytes, err)
	}
	for _, bad := range [][2]string{{"debian", ""}, {"debian=0", ""}, {"=1", ""}, {"debian=many", ""}, {"debian=101", ""}, {"", "lots"}, {"", "-1G"}} {
		if _, err := load(bad[0], bad[1]); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
