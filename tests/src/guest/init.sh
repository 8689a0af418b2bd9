#!/bin/busybox sh
# First process of the guest: modules, the network, then the steps that the test sends on the second serial
# line. What is reported stands on lines of its own that begin with '#'; output of a step begins with ' '.

/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /run /tmp /mnt /etc
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
export PATH=/programs:/bin LD_LIBRARY_PATH=/libraries HOME=/run
ln -s /proc/mounts /etc/mtab

exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty raw -echo
echo "#stage modules"
while read -r module; do
    insmod "/modules/$module" || echo "#fail insmod $module"
done </modules/order

echo "#stage network"
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up || echo "#fail no network interface"

echo "#stage ready"
: >/run/step
while IFS= read -r line; do
    case "$line" in
    "#run "*)
        { sh /run/step 2>&1 </dev/null; echo $? >/run/status; } | sed 's/^/ /'
        # A step may have ended in the middle of a line.
        echo
        echo "#end ${line#\#run } $(cat /run/status)"
        : >/run/step
        ;;
    *) printf '%s\n' "$line" >>/run/step ;;
    esac
done
