rm -f e.qcow2; qemu-img create -q -f qcow2 -o extended_l2=on e.qcow2 1M; qemu-io -c 'write 0 64k' -c 'write 128k 2k' e.qcow2 >/dev/null
off=$(python3 - <<'P'
import struct
f=open('e.qcow2','r+b'); h=f.read(104); l1=struct.unpack('>Q',h[40:48])[0]; f.seek(l1); l2=struct.unpack('>Q',f.read(8))[0]&0x00fffffffffffe00
f.seek(l2+16*2+8); f.write(struct.pack('>II',1,1)); 
P
)
qemu-img map e.qcow2; node /work/main/bin/cowdisk.js map e.qcow2
ln -sf /work/main/bin/cowdisk.js qemu-img; ./qemu-img map e.qcow2
